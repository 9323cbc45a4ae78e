"""Adapter that runs our models under lm-evaluation-harness.

    python -m hnet_cli.evaluation.harness run --model hnet --model_args pretrained=runs/x --tasks hellaswag,piqa

is the harness's own command line with the model type `hnet` registered. Texts are UTF-8; BOS precedes every context, as
it precedes every document in training, and is never scored. Nothing is cut off: the network has no longest input.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from hnet_cli import modality
from hnet_cli.checkpoints.find import load
from hnet_cli.distributed.device import this_machine
from hnet_cli.errors import EnvironmentLimit
from hnet_cli.inference.continuations import loglikelihoods
from hnet_cli.inference.generate import generate
from hnet_cli.inference.scoring import default_context, score
from hnet_cli.inference.thresholds import Compression
from hnet_cli.inference.windows import BOS
from hnet_cli.model.config import EOS

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    missing = EnvironmentLimit("lm-evaluation-harness is not installed", "pip install 'hnet-cli[harness]'")
    if __name__ != "__main__":
        raise missing from error
    print(f"hnet: {missing} ({missing.hint})", file=sys.stderr)
    sys.exit(missing.exit_code)

GENERATED = 256
"""Bytes generated where a task names no limit."""


@register_model("hnet")
class HNetLM(LM):
    """One of our models for the harness. Arguments as in `--model_args pretrained=MODEL,batch_size=16`."""

    def __init__(
        self,
        pretrained: str = "starter:text",
        device: str | None = None,
        batch_size: int | str = 64,
        threshold: float | None = None,
        **_: Any,
    ) -> None:
        """Load `pretrained`, a MODEL as everywhere in hnet, to decide at `threshold`. `batch_size`: requests read at
        once, packed into passes by their bytes. Other arguments, which the harness gives to every model, are
        ignored. Raises UsageError."""
        super().__init__()
        self.model = load(pretrained, this_machine(device).device)
        Compression.of(threshold, None).apply(self.model, list)
        name = self.model.modality
        self.table = modality.get(name).input_table if name else None
        self.at_once = int(batch_size) if str(batch_size).isdecimal() else 64

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(ln P(continuation | BOS, context), greedy decoding yields it) of each (context, continuation)."""
        result: list[tuple[float, bool]] = []
        waiting = iter(requests)
        while batch := list(islice(waiting, self.at_once)):
            pairs = [(BOS + self._bytes(request.args[0]), self._bytes(request.args[1])) for request in batch]
            log, greedy = loglikelihoods(self.model, pairs)
            for request, *answer in zip(batch, log.tolist(), greedy.tolist(), strict=True):
                result.append((answer[0], answer[1]))
                self.cache_hook.add_partial("loglikelihood", request.args, result[-1])
        return result

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """ln P of each text after BOS, in windows of `default_context` bytes; each byte counts once."""
        context = default_context(self.model.config)
        result = []
        for request in requests:
            scores = score(self.model, [self._bytes(request.args[0])], context, context // 2)
            result.append(-float(scores.nats.sum()))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, result[-1])
        return result

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to the first of the strings in `until`, which is not part of them."""
        result = []
        for request in requests:
            result.append(self._generated(*request.args))
            self.cache_hook.add_partial("generate_until", request.args, result[-1])
        return result

    def _generated(self, context: str, options: Mapping[str, Any]) -> str:
        until = options.get("until") or []
        stops = [stop.encode() for stop in ([until] if isinstance(until, str) else until) if stop]
        drawn = generate(
            self.model,
            [context.encode("utf-8", "replace")],
            max_bytes=int(options.get("max_gen_toks") or GENERATED),
            temperature=float(options.get("temperature") or 0.0) if options.get("do_sample", False) else 0.0,
            input_table=self.table,
            eos=EOS,
        )
        text = b""
        for byte in drawn:
            text += bytes([byte.byte])
            if ends := [text.find(stop) for stop in stops if stop in text]:
                text = text[: min(ends)]
                break
        return text.decode("utf-8", "replace")

    def _bytes(self, text: str) -> bytes:
        return text.encode("utf-8", "replace").translate(self.table)


if __name__ == "__main__":
    # As a program this module has another name, and would register the class again when it is imported by its own.
    sys.modules.setdefault("hnet_cli.evaluation.harness", sys.modules["__main__"])
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
