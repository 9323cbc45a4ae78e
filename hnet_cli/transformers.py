"""Our models under `transformers`: importing this module registers them (extra `transformers`).

    import hnet_cli.transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained("folder")        # of `hnet convert`, or a checkpoint
    tokens = AutoTokenizer.from_pretrained("folder")("The ", return_tensors="pt")
    model.generate(**tokens, max_new_tokens=100)

What `save_pretrained` writes is a model folder for `hnet` too. Token n is byte n; 254 begins a document.

`output_hidden_states=True` gives one tensor more than there are layers, as everywhere in transformers: the embeddings,
then the output of every layer in the order of computation (encoders, main network, decoders), that of the last layer of
a stack after the stack's norm. The last is what the output layer reads. Each is (B, L, width of its level): a byte has
the vector of the chunk it is in, so inner ones repeat; widths of the levels differ. Padding has zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from hnet_cli.errors import EnvironmentLimit
from hnet_cli.kernels import Packing
from hnet_cli.model import GenerationState, HNetConfig
from hnet_cli.model import HNetForCausalLM as Network
from hnet_cli.model.blocks import Isotropic
from hnet_cli.model.chunking import RoutingOutput
from hnet_cli.model.config import BOS, TRANSFORMERS_KEYS
from hnet_cli.model.hidden import Layer, caught, stack_of

try:
    from transformers import (
        AddedToken,
        AutoConfig,
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationMixin,
        PreTrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizer,
    )
    from transformers.modeling_outputs import CausalLMOutputWithPast
except ImportError as error:
    raise EnvironmentLimit("transformers 5 is not installed", "pip install 'hnet-cli[transformers]'") from error

EOS = 255
OWN_FIELDS = ("arch_layout", "d_model", "d_intermediate", "vocab_size", "ssm_cfg", "attn_cfg", "tie_embeddings", "hnet")
LONGEST = 1 << 40
"""Bytes of a generated document: the caches grow as needed."""


class HNetHubConfig(PreTrainedConfig):
    """`HNetConfig` as transformers holds it: the same JSON fields."""

    model_type = "hnet"
    arch_layout: list | tuple = ("m1", ("T1",), "m1")
    d_model: list | tuple = (64, 64)
    d_intermediate: list | tuple = (0, 128)
    vocab_size: int = 256
    ssm_cfg: dict | None = None
    attn_cfg: dict | None = None
    tie_embeddings: bool = False
    hnet: dict | None = None
    bos_token_id: int | None = BOS
    eos_token_id: int | list | None = EOS
    pad_token_id: int | None = EOS
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        self.ssm_cfg = self.ssm_cfg or {}
        self.attn_cfg = self.attn_cfg or {
            "num_heads": [2] * len(self.d_model),
            "rotary_emb_dim": [16] * len(self.d_model),
            "window_size": [-1] * len(self.d_model),
        }
        super().__post_init__(**(kwargs | {"tie_word_embeddings": self.tie_embeddings}))

    def network(self) -> HNetConfig:
        """Raises ValueError for values that describe no H-Net."""
        return HNetConfig.from_dict(
            {name: getattr(self, name) for name in OWN_FIELDS if getattr(self, name) is not None}
        )

    def to_dict(self) -> dict[str, Any]:
        whole = super().to_dict()
        kept = {name: whole[name] for name in TRANSFORMERS_KEYS if whole.get(name) is not None}
        return self.network().to_dict() | kept

    to_diff_dict = to_dict


CACHE = next(field.name for field in fields(CausalLMOutputWithPast) if field.name in ("cache", "past_key_values"))
"""Name of the cache in an output, which transformers 5.24 has changed."""


@dataclass(eq=False)
class GenerationCache:
    """`GenerationState` in the place of a key-value cache."""

    state: GenerationState
    columns: int
    """Columns of the input that were read, padding too."""
    is_compileable: ClassVar[bool] = False
    is_linear: ClassVar[tuple[bool, ...]] = (True,)
    """Layers with a state: `prepare_inputs_for_generation` tells what is new."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Bytes of the longest row, padding apart."""
        return max(self.state.lengths)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.state.select(beam_idx)


class HNetForCausalLM(PreTrainedModel, GenerationMixin):
    """The network under transformers' interface: `hnet_cli.HNetForCausalLM`, whose parameters it holds by their names.

    The loss is the cross-entropy in nats. What keeps the chunk rate where it belongs in training is
    `hnet_cli.ratio_loss`, which is not part of it.
    """

    config_class = HNetHubConfig
    config: HNetHubConfig
    network: Network
    _is_stateful = True
    _keep_in_fp32_modules_strict = ["residual_proj", "D"]  # noqa: RUF012
    _tied_weights_keys = {"lm_head.weight": "embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: HNetHubConfig) -> None:
        super().__init__(config)
        network = Network(config.network())
        self.embeddings, self.backbone, self.lm_head = network.embeddings, network.backbone, network.lm_head
        self.__dict__["network"] = network  # no submodule: its own are there already
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """The constructor has done it."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.embeddings

    def get_output_embeddings(self) -> torch.nn.Linear:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: GenerationCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        output_hidden_states: bool | None = None,
        cache: GenerationCache | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """input_ids (B, L) int64 -> logits (B, L, V), zero where masked; the last `logits_to_keep` of them if not 0.

        `attention_mask` (B, L): 0 for padding on either side. `labels` (B, L): the input again, -100 where nothing is
        to be predicted. With a `cache` (`past_key_values` before transformers 5.24) the input is what follows what was
        read before. Raises ValueError if hidden states of that are asked for: they are not kept.
        """
        past = past_key_values if cache is None else cache
        hidden = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        if past is not None and hidden:
            raise ValueError("hidden states are of a whole input: use_cache=False keeps them")
        if past is not None:
            steps = [self.network.step(column, past.state)[0].clone() for column in input_ids.unbind(1)]
            past.columns += input_ids.shape[1]
            return CausalLMOutputWithPast(logits=torch.stack(steps, 1)[:, -logits_to_keep:], **{CACHE: past})
        valid = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        if use_cache:
            cache = GenerationCache(self.network.allocate_state(len(input_ids), LONGEST), input_ids.shape[1])
            last = self.network.prefill([row[own] for row, own in zip(input_ids, valid, strict=True)], cache.state)
            if logits_to_keep == 1 and labels is None and not hidden and bool(valid[:, -1].all()):
                return CausalLMOutputWithPast(logits=last.clone()[:, None], **{CACHE: cache})
        packing = Packing.of_lengths(valid.sum(1).tolist(), self.device)
        stacks = self._stacks() if hidden else []
        with caught([module for _, stack in stacks for module in (*stack.layers, stack)]) as outputs:
            out = self.network.forward_packed(input_ids[valid], packing)
        logits = out.logits.new_zeros(*input_ids.shape, self.config.vocab_size)
        logits = logits.index_put(valid.nonzero(as_tuple=True), out.logits)
        loss = None
        if labels is not None:
            target = labels[:, 1:].masked_fill(~(valid[:, 1:] & valid[:, :-1]), -100)
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), target.flatten())
        states = None
        if hidden:
            first = self.network.embeddings.packed(input_ids[valid], packing)
            states = self._hidden_states(first, valid, stacks, outputs, out.routing)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits[:, -logits_to_keep:], hidden_states=states, **{CACHE: cache}
        )

    def _stacks(self) -> list[tuple[int, Isotropic]]:
        """The stacks in the order of computation, each with its level."""
        stages = range(self.network.config.num_stages)
        layers = [Layer(stage, "encoder") for stage in stages] + [Layer(len(stages) - 1, "main")]
        layers += [Layer(stage, "decoder") for stage in reversed(stages)]
        return [(layer.level, stack_of(self.network, layer)) for layer in layers]

    def _hidden_states(
        self,
        embedded: Tensor,
        valid: Tensor,
        stacks: list[tuple[int, Isotropic]],
        outputs: Mapping[torch.nn.Module, Tensor],
        routing: list[RoutingOutput],
    ) -> tuple[Tensor, ...]:
        """(B, L, D of the level) of the embeddings and of every layer."""
        chunk = [torch.arange(int(valid.sum()), device=valid.device)]  # of each byte, its position at every level
        for each in routing:
            chunk.append((each.boundary_mask.cumsum(0) - 1)[chunk[-1]])
        packed = [(0, embedded)]
        for level, stack in stacks:
            packed += [(level, outputs[layer]) for layer in stack.layers[:-1]]
            packed.append((level, outputs[stack]))
        index = valid.nonzero(as_tuple=True)
        return tuple(
            states.new_zeros(*valid.shape, states.shape[-1]).index_put(index, states[chunk[level]])
            for level, states in packed
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: GenerationCache | None = None,
        cache: GenerationCache | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        past = past_key_values if cache is None else cache
        if past is not None:  # the mask is of all that is read, the input perhaps of what is new
            mask = kwargs.get("attention_mask")
            new = (input_ids if mask is None else mask).shape[1] - past.columns
            input_ids = input_ids[:, -new:] if new > 0 else input_ids
        kept = {name: kwargs.get(name) for name in ("attention_mask", "use_cache", "logits_to_keep")}
        given = {name: value for name, value in kept.items() if value is not None}
        return {"input_ids": input_ids, "cache": past} | given


class ByteTokenizer(PreTrainedTokenizer):
    """Text as its UTF-8 bytes, after the byte 254 that begins every document."""

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, **kwargs: Any) -> None:
        special = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|end|>"}
        made = {BOS: special["bos_token"], EOS: special["eos_token"]}
        self._added_tokens_decoder = {at: AddedToken(text, special=True) for at, text in made.items()}
        super().__init__(**({"padding_side": "left", "split_special_tokens": True} | special | kwargs))

    @property
    def vocab_size(self) -> int:
        return 256

    def get_vocab(self) -> dict[str, int]:
        return {chr(byte): byte for byte in range(256)} | self.added_tokens_encoder

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return list(map(chr, text.encode("utf-8", "surrogateescape")))

    def _convert_token_to_id(self, token: str) -> int:
        return ord(token)

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return bytes(ord(token) for token in tokens if len(token) == 1).decode("utf-8", "replace")

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: list[int] | None = None) -> list:
        return [BOS, *token_ids_0, *(token_ids_1 or [])]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        return ()


AutoConfig.register("hnet", HNetHubConfig)
AutoModelForCausalLM.register(HNetHubConfig, HNetForCausalLM)
AutoTokenizer.register(HNetHubConfig, slow_tokenizer_class=ByteTokenizer)
