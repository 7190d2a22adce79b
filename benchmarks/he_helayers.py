"""HElayers' path for ONNX files, in an interpreter that has `pyhelayers`: the smallest of several times, and answers.

    OMP_NUM_THREADS=1 helayers-env/bin/python benchmarks/he_helayers.py MODEL.onnx INPUTS.npy OUTPUTS.npy

INPUTS.npy has samples [n, ...] of the only input, OUTPUTS.npy gets the decrypted answers, float64 [n, ...]. The model's
weights are not encrypted, as a server's are not that owns the model; packing, ring and levels are HElayers' choice, at
128 bits, with SEAL.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pyhelayers


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for operand in ("model", "inputs", "outputs"):
        parser.add_argument(operand)
    given = parser.parse_args()
    plain = pyhelayers.NeuralNetPlain()
    plain.init_from_files(pyhelayers.PlainModelHyperParams(), [given.model])
    wanted = pyhelayers.HeRunRequirements()
    wanted.set_he_context_options([pyhelayers.HeContext.create(["SEAL_CKKS"])])
    wanted.optimize_for_batch_size(1)
    wanted.set_model_encrypted(False)
    profile = pyhelayers.HeModel.compile(plain, wanted)
    context = pyhelayers.HeModel.create_context(profile)
    network = pyhelayers.NeuralNet(context)
    network.encode(plain, profile)
    encoder = network.create_model_io_encoder()
    walls, processes, answers = [], [], []
    for sample in np.load(given.inputs).astype(np.float64):
        query, answer = pyhelayers.EncryptedData(context), pyhelayers.EncryptedData(context)
        encoder.encode_encrypt(query, [sample[None]])
        wall, process = time.perf_counter(), time.process_time()
        network.predict(answer, query)
        walls.append(time.perf_counter() - wall)
        processes.append(time.process_time() - process)
        answers.append(np.asarray(encoder.decrypt_decode_output(answer))[0])
    np.save(given.outputs, np.array(answers))
    print(
        f"helayers {pyhelayers.VERSION}, SEAL, ring {2 * context.slot_count()}, {context.get_security_level()} bits, "
        f"depth {profile.get_he_config_requirement().multiplication_depth}"
    )
    print(f"  evaluate: best {min(walls):.4f} s, of the process {min(processes):.4f} s", flush=True)


if __name__ == "__main__":
    main()
