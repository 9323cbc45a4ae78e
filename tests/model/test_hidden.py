"""Hidden states: which stack a layer is, and that catching its output changes nothing."""

import pytest
import torch
from modelkit import tiny_config, tiny_model

from hnet_cli.model.hidden import LAYERS, Layer, caught, stack_of

MODEL = tiny_model()
IDS = torch.arange(60)[None]


def test_the_last_decoder_is_what_the_head_reads():
    with torch.no_grad(), caught([stack_of(MODEL, Layer(0, "decoder"))]) as outputs:
        logits = MODEL(IDS).logits
    (hidden,) = outputs.values()
    assert torch.equal(MODEL.lm_head(hidden), logits[0])
    assert torch.equal(MODEL(IDS).logits, logits)
    assert not stack_of(MODEL, Layer(0, "decoder"))._forward_hooks


@pytest.mark.parametrize("layer", [Layer(stage, name) for stage in (0, 1) for name in LAYERS], ids=str)
def test_a_layer_has_a_vector_for_each_position_of_its_level(layer):
    with torch.no_grad(), caught([stack_of(MODEL, layer)]) as outputs:
        routing = MODEL(IDS).routing
    positions = [60, *(int(each.boundary_mask.sum()) for each in routing)]
    assert outputs[stack_of(MODEL, layer)].shape == (positions[layer.level], MODEL.config.d_model[layer.level])


def test_the_main_network_of_a_stage_is_the_next_level():
    assert stack_of(MODEL, Layer(0, "main")) is stack_of(MODEL, Layer(1, "decoder"))
    assert stack_of(MODEL, Layer(1, "main")) is MODEL.backbone.main_network.main_network.main_network
    plain = tiny_model(config=tiny_config(("T2",)))
    assert stack_of(plain, Layer(-1, "main")) is plain.backbone.main_network


def test_of_a_layer_of_a_stack_the_residual_stream():
    stack = stack_of(MODEL, Layer(0, "encoder"))
    with torch.no_grad(), caught([stack, *stack.layers]) as outputs:
        MODEL(IDS)
    last = outputs[stack.layers[-1]]
    expected = (
        outputs[stack]
        if stack.rmsnorm is None
        else torch.nn.functional.rms_norm(last, last.shape[-1:], stack.rmsnorm.weight, 1e-5)
    )
    torch.testing.assert_close(outputs[stack], expected)
