"""Settings of a configuration: the layout."""

from hnet_cli.model.settings import parse_layout


def test_layout():
    levels = parse_layout(["m2", ["T1m4", ["T2M1"], "m4T1"], "m2"])
    assert [(x.encoder, x.main_network, x.decoder) for x in levels] == [
        ("mm", "", "mm"),
        ("Tmmmm", "", "mmmmT"),
        ("", "TTM", ""),
    ]
