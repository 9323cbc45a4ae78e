"""The table of measured configurations: Triton's own autotuners, with mamba-ssm's kernels, on a GPU that is made up."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hnet_cli.kernels import tuned

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys
import gpu_warm, torch
from pathlib import Path
from triton.runtime import jit
from hnet_cli.kernels import cuda, tuned

gpu_warm.without_gpu(90)
torch.cuda.is_available, torch.cuda.get_device_capability = lambda: True, lambda: (9, 0)
launched = []
jit.JITFunction.run = lambda kernel, *args, **options: launched.append(kernel.fn.__name__)
cuda.load_mamba()
tuners = tuned.tuners()


def launches():
    launched.clear()
    for run in gpu_warm.launches(gpu_warm.Scan(64, 64, 8, 4096, 4096), 4096, "meta"):
        run()
    return len(launched)


def fresh(content):
    for tuner in tuners.values():
        tuner.cache.clear()
    tuned.TABLE = Path(sys.argv[1])
    tuned.TABLE.write_text(content)
    cuda.load_mamba.cache_clear()
    cuda.load_mamba()
    return sum(len(tuner.cache) for tuner in tuners.values())


found = {"tuning": launches(), "tuned": launches()}
table = tuned.winners()
for rows in table.values():  # not the first of the list, which Triton takes where all are equally fast
    rows[0][1] = tuners[next(name for name in table if table[name] is rows)].configs[-1].all_kwargs()
found["entries"] = sum(map(len, table.values()))
found["seeded"] = fresh(json.dumps({tuned.machine(): table, "sm_10, triton 3.6": {}}))
found["with_table"] = launches()
used = [tuners[name] for name in table]
found["chosen"] = all(list(tuner.cache.values())[0] is tuner.configs[-1] for tuner in used)
first = next(iter(table))
table[first][0][1]["BLOCK_SIZE_M"] = 7
found["without_one"] = fresh(json.dumps({tuned.machine(): table | {"no_kernel": [[[1], {}]]}}))
found["configurations"] = len(tuners[first].configs)
found["tuning_one"] = launches()
found["elsewhere"] = fresh(json.dumps({"sm_80, triton 3.6": table}))
found["damaged"] = [fresh(text) for text in ("{", "[]", json.dumps({tuned.machine(): {first: [1]}}))]
found["tuning_again"] = launches()
print(json.dumps(found))
"""
AHEAD = """
import json, sys
import gpu_warm
from pathlib import Path

gpu_warm.CACHE, gpu_warm.PRESETS = Path(sys.argv[1]), ()
*_, made = gpu_warm.compile_share("5/1000", 90)
archive = gpu_warm.CACHE.parent / "kernels.tar.xz"
gpu_warm.pack(archive)
gpu_warm.CACHE = gpu_warm.CACHE.parent / "unpacked"
gpu_warm.unpack(archive)
print(json.dumps(made))
"""


def run(program, *arguments, **environment):
    if not (importlib.util.find_spec("mamba_ssm") and importlib.util.find_spec("triton")):
        pytest.skip("needs mamba-ssm and triton")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"} | environment
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_kernels_compiled_ahead(tmp_path):
    """One of the variants of mamba-ssm's kernels for an H100, down to its machine code."""
    cache = tmp_path / "cache"
    assert run(AHEAD, cache, TRITON_CACHE_DIR=str(cache)) == [""]
    made = {path.relative_to(cache): path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    assert [path.suffix for path in made].count(".cubin") == 1
    unpacked = tmp_path / "unpacked"
    assert {path.relative_to(unpacked): path.read_bytes() for path in unpacked.rglob("*") if path.is_file()} == made


@pytest.mark.slow
def test_kernels_in_the_table_are_not_tuned(tmp_path):
    found = run(PROGRAM, tmp_path / "tuned.json")
    assert found["tuning"] > 80 + found["tuned"]
    assert found["seeded"] == found["entries"] > 14
    assert found["with_table"] == found["tuned"]
    assert found["chosen"]
    assert found["without_one"] == found["entries"] - 1
    assert found["tuning_one"] == found["tuned"] + found["configurations"]
    assert found["elsewhere"] == 0
    assert found["damaged"] == [0, 0, 0]
    assert found["tuning_again"] == found["tuning"]


def test_the_shipped_table():
    """Kernel -> pairs of a key and a configuration, for each machine."""
    for machine, table in json.loads(tuned.TABLE.read_text(encoding="utf-8")).items():
        assert machine.startswith("sm_")
        for rows in table.values():
            assert all(isinstance(key, list) and isinstance(config, dict) for key, config in rows)
