"""The content of a `compare.json` of figures that are known."""

from hnet_cli.comparison.results import judged
from hnet_cli.comparison.verdict import verdict


def told_of(*members, seeds=1):
    """`compare.json` of members (name, learned, bpb), with intervals of 0.02 around differences."""
    rival = next(name for name, learned, _ in members if not learned)
    level = {name: bpb for name, _, bpb in members}
    models = []
    for name, learned, bpb in members:
        differences = {}
        for other in {rival, min(level, key=level.get), *(each for each in level if "2x" in each)} - {name}:
            gap = bpb - level[other]
            ci95 = [gap - 0.02, gap + 0.02]
            whole = {"bpb": gap, "bpb_ci95": ci95, "judged": judged(ci95)}
            late = {"bpb": gap + 0.1, "bpb_ci95": [ci95[0] + 0.1, ci95[1] + 0.1], "seconds": 60.0}
            differences[other] = whole | {"equal_time": late | {"judged": judged(late["bpb_ci95"])}}
        models.append(
            {
                "name": name,
                "learned": learned,
                "bpb": bpb,
                "bpb_ci95": [bpb - 0.1, bpb + 0.1],
                "differences": differences,
                "flops_per_byte": 1e6,
                "unsteady": 1.0,
                "share_of_flops": 2 if "2x" in name else 1,
            }
        )
    return {
        "models": models,
        "reference": rival,
        "best": min(level, key=level.get),
        "failed": {},
        "missing": [],
        "dataset": {"name": "x", "modality": "text", "epochs": 1.0},
        "exam": {"unit": "document"},
        "budget": {"bytes": 10**6, "flops_per_byte": 1e6, "seeds": seeds, "minutes": None},
    }


def whole(told, word=""):
    """`told_of` with all that a page shows; `word` stands where foreign words may."""
    told |= {
        "size": "nano",
        "settings": [word] if word else [],
        "crossovers": {},
        "efficiency": {},
        "format": 1,
        "exam": {"documents": "all", "bytes": 9, "of": 10, "context": 64, "unit": "document"},
        "curves": {"bytes": 5, "of": 10, "read": "5 of 10 bytes", "alike": True, "baselines": {"xz": 3.0}},
        "machine": {"device": "cpu", "name": word, "threads": 1, "versions": {"hnet": "0"}},
    }
    told["dataset"] |= {"name": word or "x", "baselines": {}}
    for model in told["models"]:
        model |= {
            "layout": "m1",
            "parameters": 10,
            "planned_flops_per_byte": 1.0,
            "bytes": 10,
            "steps": 1,
            "stages": [],
            "bytes_per_chunk": 1.0,
            "seconds": 1.0,
            "bytes_per_s": 1.0,
            "curve": [[500_000, 2.5], [10**6, model["bpb"]]],
            "curve_seconds": [[1, 2.5], [2, model["bpb"]]],
            "seeds": [{"seed": 0, "bpb": model["bpb"]}],
            "robustness": {"score": 50.0, "bpb": 4.0, "clean_bpb": 2.0, "distortions": {}},
        }
    return told | {"verdict": verdict(told)}
