"""The report of a comparison: what is in it, and that nothing in it can harm. A browser shows it in test_page_in_browser.py."""

import csv
import io
import itertools
import json
import re
from html import unescape
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from _folders import finished_run, study
from rich.console import Console

from prefopt.cli import main
from prefopt.study.comparison.compare import compare
from prefopt.study.comparison.comparison import Table
from prefopt.study.report import show, write_report
from prefopt.study.report.contents import cells_and_reasons, differing, grouped
from prefopt.study.report.figures import drawn as figure_drawn
from prefopt.study.report.figures import figures, rc_of
from prefopt.study.report.page import script_hash
from prefopt.study.report.style import COLOURS, looks
from prefopt.study.report.text_tables import ends, spread


class Outline(HTMLParser):
    """Tags, ids, addresses and text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.words += data


def test_everything_is_on_the_page(found, html):
    seen = Outline(html)
    for text in (
        *found.sentences,
        "Is <rpo> better?",
        *found.notes,
        *found.confounds,
        "odd & <i>",
        "so <b>bold</b> it was",
    ):
        assert text in seen.words
    for heading in ("gold", "Every seed", "Wins", "Samples", "Costs", "Environment", "Recipes", "gold at matched KL"):
        assert heading in seen.words
    assert "odd & <i>, seed 3 failed: ValueError: the loss is nan" in seen.words
    assert "no number" in seen.words
    assert seen.tags.count("figure") == html.count('<svg role="img"') == 6


def test_what_models_and_people_write_is_text(html):
    """The only markup is the template's and matplotlib's; the only script is the page's own, which its policy names by content."""
    tags = Outline(html).tags
    assert tags.count("script") == 1
    assert f"script-src '{script_hash(html.partition('<script>')[2].partition('</script>')[0])}'" in html
    assert "b" not in tags
    assert "i" not in tags


def test_the_page_needs_nothing_else(html):
    seen = Outline(html)
    addresses = [value for name, value in seen.attributes if name in ("src", "href", "xlink:href")]
    runs = {address for address in addresses if address.startswith("./")}  # links, which nothing loads
    addresses = [address for address in addresses if address not in runs]
    assert all(address.startswith("#") for address in addresses)
    assert not re.search(r"@import|url\((?!#)", html)
    ids = [value for name, value in seen.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {address[1:] for address in addresses} | set(re.findall(r"url\(#([\w-]+)\)", html)) <= set(ids)


def test_every_seed_is_drawn(html):
    """Of the frontier: a marker for each of the 4 + 4 + 3 + 1 finished runs, where it ends; the legend's are not counted."""
    figure = next(part for part in html.split("<figure>") if "The path of every seed" in part)
    assert len(re.findall(r'<g clip-path="[^"]*">\s*<use ', figure)) == 12
    assert figure.count(": gold 1.12 at KL 4.00</title>") == 1


def test_each_number_leads_to_the_folder_of_its_run(folder, written, html):
    links = re.findall(r'<a href="(\./[^"]+)"[^>]*>([^<]+)</a>', html)
    assert len(links) == 13  # 4 + 4 + 4 + 1
    for address, text in links:
        place = (written.parent / unquote(address)).resolve()
        assert place.is_relative_to(folder.resolve()) and place.is_dir()
        assert (text == "failed: no number") == (place / "error.txt").exists()
    assert html.count("this arm was not run with this seed") == 2 * 3  # `online` has one seed of four: title and text


def test_prompts_are_shown_as_the_model_saw_them(html):
    assert '<span class="token">&lt;|user|&gt;</span>the film 0\n<span class="token">&lt;|end|&gt;</span>' in html


def test_what_does_not_apply_says_why(html):
    seen = Outline(html)
    reasons = {value for name, value in seen.attributes if name == "title"}
    assert "the baseline is not compared with itself" in reasons
    assert "takes two seeds, and one has this number in this arm and in the baseline" in reasons
    assert not re.search(r"<td[^>]*>\s*–?\s*</td>", html)


def test_comparisons_with_the_best_have_no_p_and_the_page_says_so(folder):
    best = compare([folder], against="best")
    cells = [cell for row in best.primary.rows for cell in cells_and_reasons(row)]
    assert ("–", "comparisons of this kind have none: their intervals decide") in cells
    assert not [why for _, why in cells if "do not vary" in why]


def test_what_it_is_about_comes_first(html):
    facts = re.findall(r"<div><dt>([^<]+)</dt><dd[^>]*>([^<]+)</dd></div>", html.partition("</header>")[0])
    assert dict(facts) == {
        "model": " (10 parameters)",
        "trained on": "12 rows",
        "measured on": "test rows, gold on 3 prompts",
        "runs": "13 of 4 arms × 4 seeds, 1 failed",
    }


def test_headings_are_in_order_and_tables_have_captions(html):
    levels = [int(level) for level in re.findall(r"<h([1-6])\b", html)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert html.count("<table") == html.count("<caption") > 5
    assert not re.search(r"<th(?! scope)[ >]", html)


def test_metrics_of_sets_and_of_parts_of_rows_stand_together():
    names = ["gold_at_kl", "kl", "gold[source=b]", "hard/gold[source=a]", "hard/gold", "hard/kl", "gold[source=a/b]"]
    groups = grouped([Table(name, ()) for name in names])
    told = {group.name: [(name, [t.metric for t in tables]) for name, tables in group.metrics] for group in groups}
    assert told == {
        "": [
            ("gold_at_kl", ["gold_at_kl"]),
            ("kl", ["kl"]),
            ("gold", ["gold[source=b]", "gold[source=a/b]"]),
        ],
        "hard": [("gold", ["hard/gold", "hard/gold[source=a]"]), ("kl", ["hard/kl"])],
    }


def test_rewards_of_different_feedback_are_not_on_one_axis(folder, tmp_path):
    def drawn(feedbacks):
        made = tmp_path / "-".join(feedbacks)
        for n, name in enumerate(feedbacks):
            run = finished_run(made / f"arms/arm{n}/seed-0", 0, 0.5, recipe={"feedback": {"name": name}})
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            lines = [line | ({"rollouts/reward": n + 1.0} if "loss" in line else {}) for line in lines]
            (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return next(one for one in figures(compare([made])) if one.name == "reward")

    same, different = drawn(["a", "a"]), drawn(["a", "b"])
    for one, axes in ((same, 1), (different, 2)):
        with rc_of("reward"), figure_drawn(one, 4, False) as (shown, points):
            assert len(shown.axes) == axes
            assert len({point.axis for point in points}) == axes
    assert "heights cannot" in different.caption and "heights cannot" not in same.caption


def test_ticks_of_steps_are_whole_numbers(found):
    (learning,) = [one for one in figures(found) if one.name == "learning"]
    with rc_of("learning"), figure_drawn(learning, 4, False) as (shown, _):
        ticks = shown.axes[0].get_xticks()
    assert list(ticks) == [int(tick) for tick in ticks] and len(ticks) >= 2


def test_an_arms_colours_can_be_seen_on_both_papers():
    """WCAG 2.2, 1.4.11: 3:1 for what is no text."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour in COLOURS[1:]:
        for paper in ("#ffffff", "#16181a"):
            dark, light = sorted((luminance(colour), luminance(paper)))
            assert (light + 0.05) / (dark + 0.05) >= 3, (colour, paper)


def test_the_same_runs_make_the_same_files(found, written, tmp_path):
    first, second = written.parent, write_report(found, tmp_path).parent
    assert sorted(file.name for file in first.iterdir()) == [
        *("methods.md", "methods.tex", "references.bib"),
        "report.html",
        "results.csv",
        "results.json",
        "table.md",
        "table.tex",
    ]
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()


def test_results_in_full_precision_and_time_last(written):
    text = (written.parent / "results.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["arm"] for row in rows] == ["dpo"] * 4 + ["odd & <i>"] * 4 + ["online"] + ["rpo"] * 4
    rpo = next(row for row in rows if (row["arm"], row["seed"]) == ("rpo", "1"))
    assert float(rpo["gold"]) == 1.12
    assert float(rpo["gold_at_kl"]) == 1.12  # all runs end at 4 nats
    failed = next(row for row in rows if row["state"] == "failed")
    assert failed["gold"] == ""
    assert list(rpo)[-1] == "seconds"


def test_the_table_for_readmes(found, written):
    folder = written.parent
    lines = (folder / "table.md").read_text().splitlines()
    assert lines[0] == found.verdict.replace("<", r"\<")
    assert lines[-4].startswith("| dpo | 4 | 0.100 [−0.0299, 0.230] | baseline |")  # s = .0816, t_{3, .975} = 3.182


def test_only_what_differs_is_listed(found):
    (line,) = differing(found)
    assert line == ("train.batch_size", [{"online": "8"}.get(arm, "4") for arm in found.arms])


def test_arms_look_different_without_colour():
    styles = looks([str(n) for n in range(11)])
    assert len({(look.marker, look.line) for look in styles.values()}) == 11


def test_the_verb(folder, tmp_path, capsys):
    main(["report", str(folder), "--out", str(tmp_path / "out"), "--baseline", "rpo", "--metric", "length"])
    printed = capsys.readouterr().out
    assert "exactly the same numbers with dpo" in printed
    assert (tmp_path / "out" / "report.html").exists()
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / "nowhere")])


def test_defaults_that_no_recipe_names_are_differences(tmp_path):
    made = study(tmp_path, {"a": [0.0, 0.1], "b": [1.0, 1.12]})
    for arm, beta in (("a", 0.1), ("b", 5.0)):
        for run in (made / "arms" / arm).iterdir():
            recipe = run / "recipe.yaml"
            recipe.write_text(recipe.read_text().replace("- beta: 0.1\n  name", "- name"))
            manifest = json.loads((run / "manifest.json").read_text())
            (run / "manifest.json").write_text(json.dumps(manifest | {"objectives": [{"name": "DPO", "beta": beta}]}))
    assert ("objective.beta", ["0.1", "5.0"]) in differing(compare([made]))


def test_of_a_study_the_verb_says_what_was_declared(tmp_path, capsys):
    """Question, baseline and metric are the study's; a metric that is chosen afterwards is called so; confounds are found."""
    made = study(tmp_path, {"dpo": [0.0, 0.1], "rpo": [1.0, 1.12]})
    finished_run(made / "arms/odd/seed-0", 0, 0.2, recipe={"train": {"batch_size": 8, "lr": 0.001}})
    arms = "arms: {dpo: {}, rpo: {}, odd: {}}"
    (made / "study.yaml").write_text(
        f"question: Which?\nrecipe: r.yaml\nbaseline: rpo\nmetric: length\nseeds: 2\n{arms}\n"
    )
    main(["report", str(made)])
    printed = " ".join(capsys.readouterr().out.split())
    assert "Against rpo, on length" in printed
    assert "odd: train.batch_size is 8, and 4 in rpo" in printed
    assert "exploratory" not in printed
    assert "<h1>Which?</h1>" in (made / "report.html").read_text()
    main(["report", str(made), "--metric", "gold", "--baseline", "dpo"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "Against dpo, on gold" in printed
    assert "gold was chosen after the runs; the study declared length" in printed
    main(["report", str(made), "--against", "all"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "Of all pairs, on length" in printed
    assert "the study declared comparisons against: baseline; these are against: all, chosen after the runs" in printed
    main(["report", str(made), "--against", "dpo"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "Against dpo, on length" in printed and "chosen after the runs" not in printed


def test_nobody_said_which_end_of_another_metric_is_good(html):
    primary, exploratory = html.split("Other metrics, exploratory")
    assert '<td class="words better">better' in primary
    said = {
        cell.split()[0]
        for cell in re.findall(r'<td class="words">([^<]+)</td></tr>', exploratory.partition('id="environment"')[0])
    }
    assert "higher" in said and not said & {"better", "worse"}
    assert ends("lower") == {"better": "lower", "worse": "higher"}


def test_a_terminals_table(found):
    console = Console(file=io.StringIO(), width=160)
    show(console, found)
    text = console.file.getvalue()
    assert "odd & <i>" in text
    assert "note: online: train.batch_size is 8" in text


@pytest.mark.parametrize("width", [50, 60, 75, 76, 160])
def test_no_terminal_is_too_narrow_for_numbers(found, width):
    console = Console(file=io.StringIO(), width=width)
    show(console, found)
    table = console.file.getvalue().partition(found.verdict[:12])[0]
    assert "…" not in table
    for row in found.primary.rows[1:]:
        for part in (spread(row.mean).split()[0], spread(row.difference.mean, signed=True).split()[0]):
            assert part in table, (part, table)


def test_each_sentence_of_the_verdict_is_a_paragraph(found, html):
    assert len(found.sentences) == 3
    box = html.partition('<div class="verdict">')[2].partition("</div>")[0]
    assert [unescape(text) for text in re.findall("<p>([^<]+)</p>", box)] == list(found.sentences)


def test_samples_of_one_prompts_tasks_are_shown_apart(tmp_path):
    made = study(tmp_path / "study", {"one": [0.0], "two": [0.5]})
    for file in made.glob("arms/*/seed-*/evaluations/*.json"):
        kept = json.loads(file.read_text())
        tasks = [sample | {"prompt": "lake", "task": task} for task, sample in enumerate(kept["samples"])]
        file.write_text(json.dumps(kept | {"samples": tasks}))
    words = Outline(write_report(compare([made], baseline="one"), tmp_path / "report").read_text()).words
    assert [f"Prompt {n}, task {n - 1}" in words for n in (1, 2, 3)] == [True] * 3
