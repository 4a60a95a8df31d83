"""Compare the demo's SAE, loaded by sae-lens itself, with its plain formula.

    python check_with_sae_lens.py SAE_FOLDER RESIDUALS.safetensors

RESIDUALS contains a tensor `residual` [tokens, d_in]: real activations at the SAE's hook, such as
a shard of `examples.demo_sae.train_sae`. Needs sae-lens and imports nothing of this project.
Exits with 1 if the active sets differ or a code is off by more than
float32 rounding explains.
"""

from __future__ import annotations

import argparse
import sys

import torch
from sae_lens import SAE
from safetensors.torch import load_file

TOLERANCE = 1e-3
"""Largest accepted difference of two codes. They are of order 10, sums of 576 products."""


@torch.inference_mode()
def main() -> int:
    """Print the comparison. Returns 0 if the two agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sae", help="folder with cfg.json and sae_weights.safetensors")
    parser.add_argument("residuals", help="safetensors file with a tensor `residual`")
    parser.add_argument("--tokens", type=int, default=8192)
    arguments = parser.parse_args()

    residual = load_file(arguments.residuals)["residual"][: arguments.tokens].float()
    sae = SAE.load_from_disk(arguments.sae)
    theirs = sae.encode(residual)
    their_output = sae.decode(theirs)

    stored = load_file(f"{arguments.sae}/sae_weights.safetensors")
    weights = {name: tensor.float() for name, tensor in stored.items()}
    z = (residual - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    ours = torch.where((z > weights["threshold"]) & (z > 0), z, 0.0)
    our_output = ours @ weights["W_dec"] + weights["b_dec"]

    same_set = torch.equal(theirs > 0, ours > 0)
    code_error = float((theirs - ours).abs().max())
    output_error = float((their_output - our_output).abs().max())
    print(f"sae-lens class    {type(sae).__name__}")
    print(f"tokens            {len(residual):,}")
    print(f"active codes      {int((ours > 0).sum()):,}")
    print(f"same active set   {same_set}")
    print(f"codes             max abs difference {code_error:.3g}")
    print(f"reconstructions   max abs difference {output_error:.3g}")
    return 0 if same_set and code_error <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
