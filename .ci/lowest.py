"""Print the lower bounds of what the tests need, torch apart, as exact versions for pip: pyproject.toml is read."""

import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
wanted = [
    *project["dependencies"],
    *(line for name in ("bpe", "hub", "parquet", "remote", "tensorboard") for line in extras[name]),
]
wanted += [line for line in extras["test"] if not line.startswith(("hnet-cli", "ruff"))]
print(*(line.replace(">=", "==") for line in wanted if not line.startswith("torch")), sep="\n")
