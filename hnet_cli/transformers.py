"""Our models under `transformers`: importing this module registers them (extra `transformers`).

    import hnet_cli.transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained("folder")        # of `hnet convert`, or a checkpoint
    tokens = AutoTokenizer.from_pretrained("folder")("The ", return_tensors="pt")
    model.generate(**tokens, max_new_tokens=100)

What `save_pretrained` writes is a model folder for `hnet` too. Token n is byte n; 254 begins a document.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hnet_cli.errors import EnvironmentLimit
from hnet_cli.kernels import Packing
from hnet_cli.model import GenerationState, HNetConfig
from hnet_cli.model import HNetForCausalLM as Network
from hnet_cli.model.config import BOS, TRANSFORMERS_KEYS

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


@dataclass(eq=False)
class GenerationCache:
    """`GenerationState` in the place of a key-value cache."""

    state: GenerationState

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
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """input_ids (B, L) int64 -> logits (B, L, V), zero where masked; the last `logits_to_keep` of them if not 0.

        `attention_mask` (B, L): 0 for padding on either side. `labels` (B, L): the input again, -100 where nothing is
        to be predicted. With `past_key_values` the input is what follows what was read before.
        """
        if past_key_values is not None:
            steps = [self.network.step(column, past_key_values.state)[0].clone() for column in input_ids.unbind(1)]
            return CausalLMOutputWithPast(
                logits=torch.stack(steps, 1)[:, -logits_to_keep:], past_key_values=past_key_values
            )
        valid = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        cache = None
        if use_cache:
            cache = GenerationCache(self.network.allocate_state(len(input_ids), LONGEST))
            last = self.network.prefill([row[own] for row, own in zip(input_ids, valid, strict=True)], cache.state)
            if logits_to_keep == 1 and labels is None and bool(valid[:, -1].all()):
                return CausalLMOutputWithPast(logits=last.clone()[:, None], past_key_values=cache)
        out = self.network.forward_packed(input_ids[valid], Packing.of_lengths(valid.sum(1).tolist(), self.device))
        logits = out.logits.new_zeros(*input_ids.shape, self.config.vocab_size)
        logits = logits.index_put(valid.nonzero(as_tuple=True), out.logits)
        loss = None
        if labels is not None:
            target = labels[:, 1:].masked_fill(~(valid[:, 1:] & valid[:, :-1]), -100)
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), target.flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits[:, -logits_to_keep:], past_key_values=cache)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, past_key_values: GenerationCache | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        if past_key_values is not None:
            input_ids = input_ids[:, -1:]
        kept = {name: kwargs.get(name) for name in ("attention_mask", "use_cache", "logits_to_keep")}
        given = {name: value for name, value in kept.items() if value is not None}
        return {"input_ids": input_ids, "past_key_values": past_key_values} | given


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
