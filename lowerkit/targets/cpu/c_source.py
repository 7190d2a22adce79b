"""A program as C: one function that calls the kernels in order, and tables of what the model takes and gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lowerkit.targets.cpu.program import Branch, Buffer, Call, Copy, Program, Step, Where, leaves

#: The constants' first byte.
CONSTANTS = "lk_constants"


def c_source(
    program: Program,
    *,
    inputs: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    kernels: Mapping[str, int],
    parallel: bool,
    cpu: str,
    flags: Sequence[str],
    version: str,
) -> str:
    """The program as a C file for `runtime/internal.h`.

    Args:
        inputs: name, dtype and shape of each input of the graph.
        outputs: the same of each output.
        kernels: name -> number of pointers of each compiled kernel.
        parallel: whether any of them shares a loop between threads.
        cpu: what the kernels are compiled for, for messages.
        flags: the processor's features that they presume.
        version: of lowerkit.
    """
    names = [_step_name(step) for step in leaves(program.steps)]
    numbers = iter(range(len(names)))
    lines = [
        "/* The model's steps, written by lowerkit. */",
        "#include <string.h>",
        "",
        '#include "internal.h"',
        "",
        f"extern unsigned char {CONSTANTS}[];",
        *(f"int32_t {name}({', '.join(['void *'] * count)});" for name, count in kernels.items()),
        "",
        "static int run_steps(const lk_run *run) {",
        *_statements(program.steps, numbers, "    "),
        "    return 0;",
        "}",
        "",
        *_tensors("input", inputs),
        *_tensors("output", outputs),
        f"static const char *const features[] = {{{''.join(f'{_text(flag)}, ' for flag in flags)}NULL}};",
        f"static const char *const steps[] = {{{''.join(f'{_text(name)}, ' for name in names)}NULL}};",
        "",
        "const lk_program lk_the_program = {",
        f"    .version = {_text(version)},",
        f"    .cpu = {_text(cpu)},",
        "    .features = features,",
        f"    .inputs = {len(inputs)},",
        f"    .outputs = {len(outputs)},",
        f"    .steps = {len(names)},",
        "    .input = input,",
        "    .output = output,",
        "    .step = steps,",
        f"    .arena = {program.arena},",
        f"    .parallel = {str(parallel).lower()},",
        "    .run = run_steps,",
        "};",
    ]
    return "\n".join(lines) + "\n"


def _statements(steps: Sequence[Step], numbers: Any, indent: str) -> list[str]:
    lines = []
    for step in steps:
        if isinstance(step, Call):
            call = f"{step.function}({', '.join(map(_argument, step.arguments))})"
            lines.append(f"{indent}LK_STEP({next(numbers)}, {call});")
        elif isinstance(step, Copy):
            call = f"lk_copy({_argument(step.target)}, {_argument(step.source)}, {step.source.size})"
            lines.append(f"{indent}LK_STEP({next(numbers)}, {call});")
        elif isinstance(step, Branch):
            lines.append(f"{indent}if (*({_argument(step.condition)})) {{")
            lines += _statements(step.then, numbers, indent + "    ")
            lines.append(f"{indent}}} else {{")
            lines += _statements(step.otherwise, numbers, indent + "    ")
            lines.append(f"{indent}}}")
    return lines


def _argument(argument: Buffer | int) -> str:
    if isinstance(argument, int):
        return str(argument)
    if argument.where in (Where.INPUT, Where.OUTPUT):
        return f"run->{argument.where.value}[{argument.at}]"
    base = CONSTANTS if argument.where is Where.CONSTANT else "run->arena"
    return f"{base} + {argument.at}"


def _step_name(step: Call | Copy) -> str:
    return step.function if isinstance(step, Call) else "copy"


def _tensors(name: str, specs: Sequence[Mapping[str, Any]]) -> list[str]:
    """An array of lowerkit_tensor. C has no empty arrays, so that each ends with an element of zeros."""
    shapes, tensors = [], []
    for index, spec in enumerate(specs):
        shape = spec["shape"]
        size = math.prod(shape) * element_size(spec["dtype"])
        shapes.append(f"static const int64_t {name}_{index}[] = {{{', '.join(map(str, [*shape, 0]))}}};")
        fields = (_text(spec["name"]), _text(spec["dtype"]), len(shape), f"{name}_{index}", size)
        tensors.append(f"    {{{', '.join(map(str, fields))}}},")
    return [*shapes, f"static const lowerkit_tensor {name}[] = {{", *tensors, "    {0},", "};"]


def element_size(dtype: str) -> int:
    """Bytes of an element of a type that numpy calls `dtype`."""
    return 1 if dtype == "bool" else int("".join(c for c in dtype if c.isdigit())) // 8


def _text(text: str) -> str:
    """A C string literal, in ASCII: UTF-8 bytes above that are octal escapes."""
    escaped = "".join(
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}"
        for byte in text.encode()
    )
    return f'"{escaped}"'
