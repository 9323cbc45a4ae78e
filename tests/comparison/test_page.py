"""The page of a comparison."""

from comparisonkit import told_of
from pagekit import checked

from hnet_cli.comparison.page import page
from hnet_cli.comparison.verdict import verdict


def test_a_page_of_names_that_are_meant_to_hurt():
    evil = "</script><b onload=x>"
    told = told_of(("bpe", False, 2.0), (evil, True, 1.9))
    told |= {
        "size": "nano",
        "settings": [evil],
        "crossovers": {},
        "efficiency": {},
        "format": 1,
        "exam": {"documents": "all", "bytes": 9, "of": 10, "context": 64, "unit": "document"},
        "curves": {"bytes": 5, "of": 10, "read": "5 of 10 bytes", "alike": True, "baselines": {"xz": 3.0}},
        "machine": {"device": "cpu", "name": evil, "threads": 1, "versions": {"hnet": "0"}},
    }
    told["dataset"] |= {"name": evil}
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
            "curve": [[5, 2.5], [10, model["bpb"]]],
            "curve_seconds": [[1, 2.5], [2, model["bpb"]]],
            "seeds": [{"seed": 0, "bpb": model["bpb"]}],
            "robustness": {"score": 50.0, "bpb": 4.0, "clean_bpb": 2.0, "distortions": {}},
        }
    told["verdict"] = verdict(told)
    shown = checked(page(told))
    assert evil in shown.text
    assert "-0.100" in shown.text
