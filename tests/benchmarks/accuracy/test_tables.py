import json

import pytest

from benchmarks.accuracy.accuracy import main
from benchmarks.accuracy.groups import groups, read_results
from benchmarks.accuracy.tables import spread, tables, update


def result(row="ppl", seed=0, error=4.0, **other):
    """A result as runs.py writes it, its scores all from one number."""
    trained = row != "mean-pose"
    scores = {
        str(n): {
            "headline": {"error_percent": error - n / 10},
            "per_keypoint": {"error_percent": error + 1},
            "summed": {"summed_error": 10 * error},
        }
        for n in (0, 1, 3)
    }
    return {
        "format": 1,
        "group": f"bars.{row.replace(':', '-')}.100steps" if trained else "bars.mean-pose",
        "set": "bars",
        "row": row,
        "label": "",
        "preset": "compact",
        "options": {},
        "seed": seed,
        "steps": 100 if trained else 0,
        "threads": 1,
        "seconds_trained": 600.0,
        "scores": scores if trained else {"0": scores["0"]},
        "prior_off": {"error_percent": error + 0.25} if trained else None,
        "occlusion": [
            {"kind": "clean", "level": 0, "errors": [error, error]},
            {"kind": "random", "level": 0.1, "errors": [error + 2, error + 1], "hidden_errors": [9, 7]},
            {"kind": "centre", "level": 4, "errors": [error + 3, error + 3.1]},
        ]
        if trained
        else None,
        "refinement": {} if not trained else {"clean_change": 0.0},
        "skeleton": {"geometric": {"precision": 0.75}} if trained else None,
        **other,
    }


@pytest.fixture
def folder(tmp_path):
    """Results of two rows, one with three seeds, written in no order."""
    made = [result(seed=seed, error=error) for seed, error in ((2, 5.0), (0, 4.0), (1, 4.5))]
    for one in [*made, result("mean-pose", error=9.0)]:
        (tmp_path / f"{one['group']}.seed{one['seed']}.json").write_text(json.dumps(one))
    return tmp_path


def test_seeds_of_a_row_are_gathered_in_order_and_rows_in_theirs(folder):
    found = groups(read_results(folder))
    assert [group.first["row"] for group in found] == ["mean-pose", "ppl"]
    assert found[1].values("scores", "0", "headline", "error_percent") == [4.0, 4.5, 5.0]
    assert found[0].values("scores", "3", "headline", "error_percent") == []


def test_spread_is_mean_and_sample_deviation():
    assert spread([4.0, 4.5, 5.0]) == "4.50 ± 0.50"
    assert spread([4.0]) == "4.00"
    assert spread([]) == "–"


def test_table_has_each_number_in_its_column_and_the_command_that_gives_it_again(folder):
    found = groups(read_results(folder))
    text = tables("bars", found, found[1:], None)
    lines = text.splitlines()
    assert "| mean-pose | – | – | – | 9.00 | – | – | – | 10.00 | – | 90.0 |" in lines
    assert (
        "| ppl | 100 | 10 | 3 | 4.50 ± 0.50 | 4.40 ± 0.50 | 4.20 ± 0.50 | 4.75 ± 0.50 | 5.50 ± 0.50 | – | 45.0 ± 5.0 |"
        in lines
    )
    assert "| ppl, 100 steps | random 0.1 | 6.50 ± 0.50 | 5.50 ± 0.50 | – | – | 9.00 ± 0.00 | 7.00 ± 0.00 |" in lines
    assert "| ppl, 100 steps | 0.75 ± 0.00 | – | – | – | – | – | – | – | – |" in lines
    shown = "4.50 ± 0.50 → 4.50 ± 0.50 | 6.50 ± 0.50 → 5.50 ± 0.50 | 7.50 ± 0.50 → 7.60 ± 0.50"
    assert f"| ppl, 100 steps | {shown} | not lower at centre 4; clean +0.00 points |" in lines
    assert "| ppl, 100 steps | random 0.1" not in tables("bars", found, [], None)
    assert "--set bars.npz --row ppl --steps 100 --seed 0 1 2 --threads 1 --out benchmarks/results" in text


def test_command_of_an_ablation_names_its_options(tmp_path):
    one = result(options={"mask_ratio": "0.65"}, label="less masked", group="bars.ppl.mask_ratio=0.65.100steps")
    (tmp_path / "one.json").write_text(json.dumps(one))
    (group,) = groups(read_results(tmp_path))
    assert group.title == "ppl; less masked; `mask_ratio=0.65`"
    assert "--set-option mask_ratio=0.65 --label 'less masked'" in group.command


def test_runs_of_unequal_steps_are_not_averaged():
    with pytest.raises(ValueError, match="took 100 and 200 steps"):
        groups([result(), result(seed=1, steps=200)])


def test_curves_keep_kinds_and_levels_apart(folder):
    ours = groups(read_results(folder))[1]
    assert ours.curve("centre", 4) == [[7.0, 7.5, 8.0], [7.1, 7.6, 8.1]]
    assert ours.curve("random", 0.1)[0] == [6.0, 6.5, 7.0]


def test_prose_around_the_markers_stays(tmp_path):
    file = tmp_path / "ACCURACY.md"
    update(file, "bars", "old table")
    update(file, "birds", "other table")
    file.write_text(file.read_text().replace("## bars", "## bars\n\nProse before.") + "\nProse after.\n")
    update(file, "bars", "new table")
    text = file.read_text()
    assert "old table" not in text
    assert (
        text.index("Prose before.") < text.index("new table") < text.index("other table") < text.index("Prose after.")
    )
    update(file, "bars", "new table")
    assert file.read_text() == text


def test_file_with_a_lost_marker_is_left_alone(tmp_path):
    file = tmp_path / "ACCURACY.md"
    update(file, "bars", "table")
    spoiled = file.read_text().replace("<!-- tables of bars: end -->", "")
    file.write_text(spoiled)
    with pytest.raises(ValueError, match="two markers of bars"):
        update(file, "bars", "table")
    assert file.read_text() == spoiled


def test_command_writes_tables_and_a_plot_beside_them(folder):
    pytest.importorskip("matplotlib")
    into = folder / "out.md"
    assert main(["table", str(folder), "--into", str(into)]) == 0
    assert "![Error under occlusion, bars](occlusion_bars.png)" in into.read_text()
    assert 5_000 < (folder / "occlusion_bars.png").stat().st_size < 150_000


def test_folder_without_results_is_an_error(tmp_path, capsys):
    assert main(["table", str(tmp_path)]) == 2
    assert "holds no result" in capsys.readouterr().err
    (tmp_path / "other.json").write_text("{}")
    assert main(["table", str(tmp_path)]) == 2
    assert "other.json is no result" in capsys.readouterr().err


def test_measure_that_some_seeds_lack_says_so(tmp_path):
    for seed, skeleton in enumerate(
        ({"geometric": {"precision": 0.5, "recall": 0.25}}, {"geometric": {"recall": 0.75}})
    ):
        (tmp_path / f"{seed}.json").write_text(json.dumps(result(seed=seed, skeleton=skeleton)))
    lines = tables("bars", groups(read_results(tmp_path)), [], None).splitlines()
    assert "| ppl, 100 steps | 0.50 (1 of 2 seeds) | – | 0.50 ± 0.35 | – | – | – | – | – | – |" in lines
