"""The demo SAE's hand-written gradients, its selection of active features, its saved formula."""

from __future__ import annotations

from pathlib import Path

import torch

from examples.demo_sae import batchtopk, saved


def _problem() -> tuple[torch.Tensor, batchtopk.Weights]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 32, generator=generator)
    weights = batchtopk.initial_weights(x.mean(0), 128, generator)
    weights.encoder_bias += 0.1 * torch.randn(128, generator=generator)
    return x, weights


def test_gradients_equal_autograd_up_to_bfloat16() -> None:
    x, weights = _problem()
    active = batchtopk.batch_top_k(batchtopk.pre_activations(x, weights), 64 * 5, 0.0)
    grads, residual = batchtopk.gradients(x, active, weights)
    leaves = [tensor.clone().requires_grad_() for tensor in weights.all()]
    encoder, decoder, encoder_bias, decoder_bias = leaves
    mask = torch.zeros(64, 128)
    mask[active.token, active.feature] = 1
    codes = ((x - decoder_bias) @ encoder.T + encoder_bias) * mask
    error = x - codes @ decoder - decoder_bias
    expected = torch.autograd.grad(error.square().sum(1).mean(), leaves)
    for grad, wanted in zip(grads, expected, strict=True):
        assert float((grad - wanted).abs().max()) < 0.01 * float(wanted.abs().max())
    assert torch.allclose(residual, error.detach(), atol=0.05)


def test_batch_top_k_does_not_depend_on_the_guess() -> None:
    z = torch.randn(50, 200, generator=torch.Generator().manual_seed(2)).bfloat16()
    reference = z.float().clone()
    cut = float(reference.flatten().topk(400).values[-1])
    for guess in (0.0, 0.9 * cut, cut, 100.0):
        active = batchtopk.batch_top_k(z, 400, guess)
        assert len(active.value) == 400
        assert active.cut == cut
        assert torch.equal(reference[active.token, active.feature], active.value)


def test_saved_sae_has_the_formula_of_its_class(tmp_path: Path) -> None:
    x, weights = _problem()
    trained = batchtopk.Trained(weights, threshold=0.5, seconds=0.0, tokens=0)
    saved.save(trained, tmp_path, layer=3, training={})
    sae = saved.load(tmp_path)
    codes = sae.encode(x)
    z = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    assert torch.equal(codes > 0, z > 0.5)
    some = torch.tensor([5, 77])
    assert torch.equal(sae.encode(x, some) > 0, codes[:, some] > 0)
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(128), atol=1e-3)
