"""The adapter for lm-evaluation-harness: our models under its tasks.

    python -m hnet_cli.evaluation.harness run --model hnet --model_args pretrained=runs/x --tasks hellaswag,piqa

is its own command line, with the model type `hnet` registered. Texts are UTF-8; BOS, which stands before every document
in training, stands before every context and is never scored. Nothing is cut off: the network has no longest input.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from hnet_cli import modality
from hnet_cli.checkpoints.find import load
from hnet_cli.distributed.device import this_machine
from hnet_cli.errors import EnvironmentLimit
from hnet_cli.evaluation.report import default_context
from hnet_cli.evaluation.scoring import loglikelihoods, score
from hnet_cli.inference import generate as sample
from hnet_cli.inference.windows import BOS

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    missing = EnvironmentLimit("lm-evaluation-harness is not installed", "pip install 'hnet[harness]'")
    if __name__ != "__main__":
        raise missing from error
    print(f"hnet: {missing} ({missing.hint})", file=sys.stderr)
    sys.exit(missing.exit_code)

GENERATED = 256
"""Bytes, where a task names no limit."""


@register_model("hnet")
class HNetLM(LM):
    """A model of ours as the harness sees it. Arguments as in `--model_args pretrained=MODEL,batch_size=16`."""

    def __init__(
        self, pretrained: str = "starter:text", device: str | None = None, batch_size: int | str = 64, **_: Any
    ) -> None:
        """`pretrained`: MODEL, as everywhere in hnet. `batch_size`: requests read at once; they are packed into passes
        by their bytes. Other arguments that the harness hands to every model are not needed."""
        super().__init__()
        self.model = load(pretrained, this_machine(device).device)
        name = self.model.modality
        self.table = modality.get(name).input_table if name else None
        self.at_once = int(batch_size) if str(batch_size).isdecimal() else 64

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(ln P(continuation | BOS, context), whether greedy decoding gives it) of each (context, continuation)."""
        result: list[tuple[float, bool]] = []
        waiting = iter(requests)
        while some := list(islice(waiting, self.at_once)):
            pairs = [(BOS + self._bytes(each.args[0]), self._bytes(each.args[1])) for each in some]
            log, greedy = loglikelihoods(self.model, pairs)
            result += zip(log.tolist(), greedy.tolist(), strict=True)
            for each, found in zip(some, result[-len(some) :], strict=True):
                self.cache_hook.add_partial("loglikelihood", each.args, found)
        return result

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """ln P of each text after BOS, in windows of `default_context` bytes; each byte counts once."""
        context = default_context(self.model.config)
        result = []
        for each in requests:
            data = self._bytes(each.args[0])
            result.append(-float(score(self.model, [data], context, context // 2).nats.sum()) if data else 0.0)
            self.cache_hook.add_partial("loglikelihood_rolling", each.args, result[-1])
        return result

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to the first of the strings in `until`, which is not part of them."""
        return list(self._generated(requests))

    def _generated(self, requests: Sequence[Instance]) -> Iterator[str]:
        for each in requests:
            context, options = each.args
            until = options.get("until") or []
            stops = [stop.encode() for stop in ([until] if isinstance(until, str) else until) if stop]
            sampled = options.get("do_sample", False)
            drawn = sample.generate(
                self.model,
                [context.encode("utf-8", "replace")],
                max_bytes=int(options.get("max_gen_toks") or GENERATED),
                temperature=float(options.get("temperature") or 0.0) if sampled else 0.0,
                input_table=self.table,
            )
            text = b""
            for one in drawn:
                text += bytes([one.byte])
                if ends := [text.find(stop) for stop in stops if stop in text]:
                    text = text[: min(ends)]
                    break
            yield text.decode("utf-8", "replace")
            self.cache_hook.add_partial("generate_until", each.args, text.decode("utf-8", "replace"))

    def _bytes(self, text: str) -> bytes:
        return text.encode("utf-8", "replace").translate(self.table)


def main() -> None:
    """The harness's own command line."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    # Run as a program this module has another name, and would register the class once more when it is imported by name.
    sys.modules.setdefault("hnet_cli.evaluation.harness", sys.modules["__main__"])
    main()
