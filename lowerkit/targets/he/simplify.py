"""The tensor program with fewer levels: the same numbers at its outputs.

In order:

- copies and moves of elements become part of the products that read them;
- factors over which a sum does not run are taken out of it, so that a softmax's reciprocal is computed beside the
  product with V, and not before it;
- every polynomial gets [-1, 1], after an affine step that maps its interval there;
- affine steps of affine steps are multiplied out;
- values that are only read centred, as all between layer norms are, are centred where they are computed;
- a matrix goes before a factor that is the same for all that each of its rows sums, and computed beside it;
- constant factors go to where they cost nothing, so that sums are sums.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from scipy import sparse

from lowerkit.targets.he.program import Affine, Input, Polynomial, Product, Program, Step, picked


def simplified(program: Program) -> Program:
    """All of the module's rewritings."""
    program = projected(fused(_on_unit(taken_out(gathered(program))), inputs=False))
    return balanced(factored(fused(gathered(program))))


def gathered(program: Program) -> Program:
    """Products that read affine steps which only copy and move elements read these steps' operands instead."""
    steps: dict[str, Step] = {}
    for step in program.steps:
        if isinstance(step, Product):
            (left, one), (right, two) = (_origin(steps, *factor) for factor in step.factors)
            step = replace(step, left=left, right=right, left_index=one, right_index=two)
        steps[step.name] = step
    return _live(program, steps)


def _origin(steps: Mapping[str, Step], name: str, index: np.ndarray | None) -> tuple[str, np.ndarray | None]:
    """Where the elements `index` of a value come from, through all steps that only copy and move."""
    step = steps[name]
    while isinstance(step, Affine) and (source := selection(step)) is not None:
        (name,) = step.terms
        index = picked(source, index)
        step = steps[name]
    if index is not None and np.array_equal(index, np.arange(math.prod(step.shape))):
        index = None
    return name, index


def selection(step: Affine) -> np.ndarray | None:
    """Which element of its only operand every element of the step is, int64 [size]; None where it does more."""
    matrix = next(iter(step.terms.values()))
    single = len(step.terms) == 1 and not step.bias.any() and bool((np.diff(matrix.indptr) == 1).all())
    return matrix.indices.astype(np.int64) if single and bool((matrix.data == 1).all()) else None


def taken_out(program: Program) -> Program:
    """sum_j a_j c b_j as c sum_j a_j b_j.

    That is for a linear step that reads a product of a product, where a factor of the inner one is the same for all
    that each row of the matrix sums. The factor, here mostly the deeper one, then waits for nothing.
    """
    readers = _readers(program)
    steps: dict[str, Step] = {}
    for step in program.steps:
        made = _without_factor(step, steps, readers) if isinstance(step, Affine) else None
        for new in made or (step,):
            steps[new.name] = new
    return _live(program, steps)


def _without_factor(
    step: Affine, steps: Mapping[str, Step], readers: Mapping[str, int]
) -> tuple[Step, ...] | None:
    (name, matrix), *others = step.terms.items()
    outer = steps[name]
    if others or step.bias.any() or not isinstance(outer, Product) or readers[name] > 1 or not _sums(matrix):
        return None
    for place, (value, index) in enumerate(outer.factors):
        inner = steps[value]
        if not isinstance(inner, Product) or readers[value] > 1:
            continue
        for which, (factor, taken) in enumerate(inner.factors):
            constant = _same_in_rows(matrix, _composed(taken, index))
            if constant is None:
                continue
            kept, kept_index = inner.factors[1 - which]
            kept_index = _composed(kept_index, index)
            product = replace(outer, name=f"{step.name}.terms")
            if place == 0:
                product = replace(product, left=kept, left_index=kept_index)
            else:
                product = replace(product, right=kept, right_index=kept_index)
            total = replace(step, name=f"{step.name}.sums", terms={product.name: matrix})
            last = Product(step.name, step.shape, step.node, total.name, factor, None, constant)
            return product, total, last
    return None


def _composed(inner: np.ndarray | None, outer: np.ndarray | None) -> np.ndarray | None:
    return outer if inner is None else picked(inner, outer)


def _same_in_rows(matrix: sparse.csr_array, index: np.ndarray | None) -> np.ndarray | None:
    """The element that `index` says for all columns of a row, int64 [rows], where rows have one each."""
    if index is None or np.diff(matrix.indptr).min(initial=1) == 0:
        return None
    found = index[matrix.indices]
    first = found[matrix.indptr[:-1]]
    same = np.array_equal(np.repeat(first, np.diff(matrix.indptr)), found)
    return first if same else None


def fused(program: Program, *, inputs: bool = True) -> Program:
    """The same program with affine steps of affine steps multiplied out: each costs a level.

    A step whose matrix only moves and scales elements goes into all of its readers, and so, if `inputs`, does a map of
    what the client sends where that makes no matrix larger; any other goes into its only reader, so that nothing is
    computed twice. Plain sums cost no level, and stay where their reader's matrix would grow.
    """
    steps: dict[str, Step] = {}
    readers = _readers(program)
    for step in program.steps:
        if isinstance(step, Affine):
            step = _substituted(step, steps, readers, inputs)
        steps[step.name] = step
    return _live(program, steps)


def projected(program: Program) -> Program:
    """Values that are only read through one projection, directly or as terms of sums, are projected from the start.

    With P P = P every reader finds what it found, and P of such a value is the value itself: a layer norm's centring
    costs nothing where it is applied to the weights of what is summed up to its input. Exact, since P is linear.
    """
    joined = _joined(program)
    through = _read_through(joined)
    steps: list[Step] = []
    names = {name: f"{name}.projected" for name in through}
    for step, other in zip(program.steps, joined.steps, strict=True):
        if isinstance(step, Affine):
            step = other if isinstance(other, Affine) and through.keys() & other.terms.keys() else step
            step = _projected(step, through, names)
        steps.append(step)
    return _live(program, {step.name: step for step in steps})


def _projected(step: Affine, through: Mapping[str, sparse.csr_array], names: Mapping[str, str]) -> Affine:
    """The step of projected values, itself projected if it is one."""
    own = through.get(step.name)
    terms: dict[str, sparse.csr_array] = {}
    for name, matrix in step.terms.items():
        done = through.get(name)
        if done is not None and _same(matrix, done):
            matrix = _identity(matrix.shape[0])
        elif own is not None and not (done is not None and _same(done, own)):
            matrix = sparse.csr_array(own @ matrix)
        terms[names.get(name, name)] = matrix
    bias = step.bias if own is None else own @ step.bias
    return replace(step, name=names.get(step.name, step.name), terms=terms, bias=bias)


def _joined(program: Program) -> Program:
    """The program with x - mean(x) as one matrix of x, and what else reads a value and sums of that value alone."""
    steps = {step.name: step for step in program.steps}
    found: list[Step] = []
    for step in program.steps:
        if isinstance(step, Affine) and len(step.terms) == 2:
            for name, inner in step.terms.items():
                source = steps[name]
                (other,) = step.terms.keys() - {name}
                if isinstance(source, Affine) and source.terms.keys() == {other}:
                    matrix = sparse.csr_array(step.terms[other] + inner @ source.terms[other])
                    step = replace(step, terms={other: matrix}, bias=step.bias + inner @ source.bias)
                    break
        found.append(step)
    return Program(tuple(found), program.outputs)


def _read_through(program: Program) -> dict[str, sparse.csr_array]:
    """Affine steps' values that all readers read through the same projection, and that projection.

    A reader that only adds other terms to the value, and is itself read through the projection alone, is as good. Plain
    sums are left out: they cost no level, and their projections would.
    """
    found: dict[str, sparse.csr_array] = {}
    live = {step.name for step in _live(program, {s.name: s for s in program.steps}).steps}
    for step in reversed(program.steps):
        if not isinstance(step, Affine) or step.name in program.outputs or common_factor(step) is not None:
            continue
        seen: list[sparse.csr_array | None] = []
        for reader in program.steps:
            if reader.name in live and step.name in reader.reads:
                matrix = reader.terms[step.name] if isinstance(reader, Affine) else None
                if matrix is not None and _same(matrix, _identity(matrix.shape[0])):
                    matrix = found.get(reader.name)
                seen.append(matrix if matrix is not None and _projects(matrix) else None)
        first = seen[0] if seen else None
        if first is not None and all(matrix is not None and _same(matrix, first) for matrix in seen):
            found[step.name] = first
    return found


def _projects(matrix: sparse.csr_array) -> bool:
    square = matrix.shape[0] == matrix.shape[1]
    return square and bool(abs(matrix @ matrix - matrix).max() < 1e-6)


def _same(one: sparse.csr_array, two: sparse.csr_array) -> bool:
    return one.shape == two.shape and one.nnz == two.nnz and bool(abs(one - two).max() < 1e-6)


def _identity(size: int) -> sparse.csr_array:
    return sparse.csr_array(sparse.eye_array(size, format="csr"))


def factored(program: Program) -> Program:
    """M (x r) + b as (M x) r + b, where r has one number for all that each row of M sums, and is deeper than x.

    M x is then computed beside r. Only where nothing else reads the product, so that none is computed twice.
    """
    readers, depths = _readers(program), _depths(program)
    steps: dict[str, Step] = {}
    for step in program.steps:
        made = _factor_last(step, steps, readers, depths) if isinstance(step, Affine) else None
        for new in made or (step,):
            steps[new.name] = new
    return _live(program, steps)


def _factor_last(
    step: Affine, steps: Mapping[str, Step], readers: Mapping[str, int], depths: Mapping[str, int]
) -> tuple[Step, ...] | None:
    (name, matrix), *others = step.terms.items()
    product = steps[name]
    if others or not isinstance(product, Product) or readers[name] > 1 or not _sums(matrix):
        return None
    for (factor, index), (kept, kept_index) in (product.factors, product.factors[::-1]):
        constant = _same_in_rows(matrix, index)
        if constant is None or depths[factor] <= depths[kept]:
            continue
        size = math.prod(steps[kept].shape)
        places = np.arange(matrix.shape[1]) if kept_index is None else kept_index
        moved = sparse.csr_array(
            (np.ones(len(places)), places, np.arange(len(places) + 1)), shape=(len(places), size)
        )
        zeros, biased = np.zeros(matrix.shape[0]), bool(step.bias.any())
        first = Affine(
            f"{step.name}.map", step.shape, step.node, {kept: sparse.csr_array(matrix @ moved)}, zeros
        )
        last = Product(
            f"{step.name}.product" if biased else step.name,
            step.shape,
            step.node,
            first.name,
            factor,
            None,
            constant,
        )
        if not biased:
            return first, last
        return first, last, replace(step, terms={last.name: _identity(matrix.shape[0])})
    return None


def _depths(program: Program) -> dict[str, int]:
    """How many matrices, products and levels of polynomials are before every value."""
    found: dict[str, int] = {}
    for step in program.steps:
        own = (len(step.coefficients) - 1).bit_length() if isinstance(step, Polynomial) else 1
        found[step.name] = max((found[name] for name in step.reads), default=-1) + own
    return found


def _on_unit(program: Program) -> Program:
    """Every polynomial on [-1, 1], after an affine step that maps its interval there."""
    steps: list[Step] = []
    for step in program.steps:
        if isinstance(step, Polynomial) and (step.low, step.high) != (-1.0, 1.0):
            size, factor = int(np.prod(step.shape)), 2 / (step.high - step.low)
            scaling = sparse.csr_array(
                sparse.dia_array((np.full((1, size), factor), [0]), shape=(size, size))
            )
            shift = np.full(size, -factor * (step.low + step.high) / 2)
            mapped = Affine(f"{step.name}.unit", step.shape, step.node, {step.value: scaling}, shift)
            steps.append(mapped)
            step = replace(step, value=mapped.name, low=-1.0, high=1.0)
        steps.append(step)
    return Program(tuple(steps), program.outputs)


def _substituted(step: Affine, steps: Mapping[str, Step], readers: Mapping[str, int], inputs: bool) -> Affine:
    terms: dict[str, sparse.csr_array] = {}
    bias = np.array(step.bias, np.float64)

    def add(name: str, matrix: sparse.csr_array) -> None:
        terms[name] = sparse.csr_array(terms[name] + matrix) if name in terms else matrix

    for name, matrix in step.terms.items():
        source = steps[name]
        if not isinstance(source, Affine) or not (
            (readers[name] == 1 and not _sum_apart(matrix, source))
            or _moves(source)
            or (inputs and _cheaper(matrix, source, steps))
        ):
            add(name, matrix)
            continue
        bias += matrix @ source.bias
        for inner, first in source.terms.items():
            add(inner, sparse.csr_array(matrix @ first))
    return Affine(step.name, step.shape, step.node, terms, bias)


def _sum_apart(matrix: sparse.csr_array, source: Affine) -> bool:
    """Whether a map of plain sums has fewer numbers than its product with them: it then reads the sums."""
    (first, *others) = source.terms.values()
    whole = not others and _sums(first) and common_factor(source) is not None
    return whole and (matrix @ first).nnz > matrix.nnz + first.nnz


def _cheaper(matrix: sparse.csr_array, source: Affine, steps: Mapping[str, Step]) -> bool:
    """Whether a matrix of a map of what the client sends has no more numbers than the matrix: patches of an image."""
    if not all(isinstance(steps[name], Input) for name in source.terms):
        return False
    return all((matrix @ first).nnz <= matrix.nnz for first in source.terms.values())


def _moves(step: Affine) -> bool:
    return all(np.diff(matrix.indptr).max(initial=0) <= 1 for matrix in step.terms.values())


def balanced(program: Program) -> Program:
    """Constant factors moved so that sums of elements with one common factor have the factor 1, and cost no level.

    Every value may stand for a multiple of what it was. In logarithms the conditions are linear: products multiply
    the multiples of their factors, polynomials need their operands as they are and inputs and outputs stay, while
    other affine steps and polynomials may scale their results for nothing. Where not all sums can have the factor 1,
    some keep theirs. A value that is a multiple now gets another name.
    """
    at = {step.name: i for i, step in enumerate(program.steps)}
    needed, wished = _conditions(program, at)
    while True:
        rows = np.zeros((len(needed) + len(wished), len(at)))
        sides = np.zeros(len(rows))
        for row, (terms, side) in enumerate([*needed, *wished]):
            for name, factor in terms:
                rows[row, at[name]] += factor
            sides[row] = side
        logarithms = np.linalg.lstsq(rows, sides, rcond=None)[0]
        wrong = np.abs(rows @ logarithms - sides)
        if wrong.max(initial=0) < 1e-8:
            break
        del wished[int(wrong[len(needed) :].argmax())]
    logarithms = np.round(logarithms, 9)  # so that a library's rounding does not reach the artifact
    return _scaled(program, {name: math.exp(logarithms[i]) for name, i in at.items()})


#: sum of factor * log(multiple of value) over the pairs = number.
_Condition = tuple[list[tuple[str, float]], float]


def _conditions(program: Program, at: Mapping[str, int]) -> tuple[list[_Condition], list[_Condition]]:
    """What must hold, and what is wished: that a sum's factor is 1."""
    needed: list[_Condition] = [([(name, 1.0)], 0.0) for name in program.outputs]
    wished: list[_Condition] = []
    for step in program.steps:
        if isinstance(step, Input):
            needed.append(([(step.name, 1.0)], 0.0))
        elif isinstance(step, Product):
            needed.append(([(step.name, 1.0), (step.left, -1.0), (step.right, -1.0)], 0.0))
        elif isinstance(step, Polynomial):
            needed.append(([(step.value, 1.0)], 0.0))
        elif (factor := common_factor(step)) is not None and factor > 0:
            (name,) = step.terms
            wished.append(([(step.name, 1.0), (name, -1.0)], -math.log(factor)))
    return needed, wished


def common_factor(step: Affine) -> float | None:
    """What all elements of the step's only matrix are that are not 0, up to float32's rounding."""
    if len(step.terms) != 1:
        return None
    data = next(iter(step.terms.values())).data
    same = len(data) > 0 and bool(np.allclose(data, data[0], rtol=1e-6, atol=0))
    return float(data[0]) if same else None


def _scaled(program: Program, multiples: Mapping[str, float]) -> Program:
    """The program with every value that many times as large."""
    names = {name: name if multiple == 1 else f"{name}.scaled" for name, multiple in multiples.items()}
    steps: list[Step] = []
    for step in program.steps:
        multiple, name = multiples[step.name], names[step.name]
        if isinstance(step, Affine):
            factors = {value: multiple / multiples[value] for value in step.terms}
            terms = {names[v]: _rounded(factors[v] * matrix) for v, matrix in step.terms.items()}
            step = replace(step, name=name, terms=terms, bias=multiple * step.bias)
        elif isinstance(step, Product):
            step = replace(step, name=name, left=names[step.left], right=names[step.right])
        elif isinstance(step, Polynomial):
            coefficients = tuple((multiple * np.array(step.coefficients)).tolist())
            step = replace(step, name=name, value=names[step.value], coefficients=coefficients)
        steps.append(step)
    renamed = {name: (names[name], multiples[name]) for name in names if names[name] != name}
    return Program(tuple(steps), program.outputs, renamed)


def _rounded(matrix: sparse.csr_array) -> sparse.csr_array:
    """With ones where logarithms left numbers next to 1."""
    data = np.where(np.abs(matrix.data - 1) < 1e-6, 1.0, matrix.data)
    return sparse.csr_array((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def _readers(program: Program) -> dict[str, int]:
    """How many steps read each value; being an output counts too."""
    found = dict.fromkeys((step.name for step in program.steps), 0)
    for step in program.steps:
        for name in dict.fromkeys(step.reads):
            found[name] += 1
    for name in program.outputs:
        found[name] += 1
    return found


def _live(program: Program, steps: Mapping[str, Step]) -> Program:
    """The steps that outputs need, and all inputs."""
    needed = set(program.outputs)
    for step in reversed(list(steps.values())):
        if step.name in needed:
            needed.update(step.reads)
    kept = tuple(s for s in steps.values() if s.name in needed or isinstance(s, Input))
    return Program(kept, program.outputs)


def _sums(matrix: sparse.csr_array) -> bool:
    return bool(matrix.nnz > matrix.shape[0])
