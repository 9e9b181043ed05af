"""The report is written from what a run saved: right figures, escaped, bounded, honest about what is gone."""

from __future__ import annotations

import json
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from report_helpers import HOSTILE, add_pictures, softmax, write_run
from run_helpers import make_pictures, run_module, tiny_config
from scipy import stats
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from vit_finetune import RequestError, finetune
from vit_finetune.report import REPORT_FILE, write_report
from vit_finetune.report.confusion import MOST_IN_TABLE, confusion_of
from vit_finetune.report.measured import class_rows, confused_pairs, figures_of
from vit_finetune.report.run_folder import read_run
from vit_finetune.report.scored import read_scored


class _Page(HTMLParser):
    """What stands in a page: its elements, its addresses, its text, and the text of each section."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.sections: dict[str, str] = {}
        self._section = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.addresses += [str(values[name]) for name in ("src", "href") if name in values]
        assert not any(name.startswith("on") for name in values)
        if tag in ("section", "header"):
            self._section = values.get("id") or tag

    def handle_data(self, data: str) -> None:
        self.sections[self._section] = " ".join((self.sections.get(self._section, "") + data).split())

    @property
    def text(self) -> str:
        return " ".join(self.sections.values()).replace("\N{NO-BREAK SPACE}", " ")


def guesses(labels: np.ndarray, num_classes: int, *, skill: float = 2.0) -> np.ndarray:
    """Return probabilities of a model that is right more often than not."""
    noise = np.random.default_rng(7).normal(0, 1, (len(labels), num_classes))
    return softmax(skill * np.eye(num_classes)[labels] + noise)


def test_figures__equal_the_libraries(tmp_path: Path) -> None:
    """Accuracy and its interval, precision, recall, F1 and the confusion matrix are scikit-learn's and scipy's."""
    labels = np.arange(90) % 4
    probabilities = guesses(labels, 5)
    run = read_run(write_run(tmp_path / "run", labels, probabilities, "abcde"))
    scored = read_scored(tmp_path / "run/predictions.parquet", run.class_names)
    said = probabilities.argmax(axis=1)
    accuracy = figures_of(run, scored)[0]
    wilson = stats.binomtest(int((said == labels).sum()), 90).proportion_ci(method="wilson")
    assert (accuracy.low, accuracy.high) == pytest.approx((wilson.low, wilson.high), abs=1e-7)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, said, labels=range(4), zero_division=0)
    rows = class_rows(run.class_names, scored, num_train=None)
    assert [row.precision for row in rows[:4]] == pytest.approx(precision)
    assert [row.recall for row in rows[:4]] == pytest.approx(recall)
    assert [row.f1 for row in rows[:4]] == pytest.approx(f1)
    assert rows[4].recall is None and rows[4].num_samples == 0
    matrix = confusion_matrix(labels, said, labels=range(5))
    assert np.array_equal(confusion_of(scored).rows, matrix)
    worst = max((int(matrix[i, j]), i, j) for i in range(5) for j in range(5) if i != j)
    assert confused_pairs(scored)[0].count == worst[0]
    assert len(scored) == 90 and scored.margin.min() >= 0
    two = np.sort(probabilities, axis=1)
    assert scored.margin == pytest.approx(two[:, -1] - two[:, -2], abs=1e-6)


def test_report__escapes_and_tells(tmp_path: Path) -> None:
    """Hostile names are text, the only addresses are inside the file or of this page, and every part is there."""
    labels = np.arange(60) % 3
    run = write_run(tmp_path / "run", labels, guesses(labels, 3), HOSTILE)
    add_pictures(run, tmp_path / "set", labels, HOSTILE, copies=1)
    page = _Page(write_report(run, attention=False))
    assert page.tags.count("script") == 1 and not {"link", "iframe", "object"} & set(page.tags)
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert all(name in page.sections["classes"] for name in HOSTILE)
    assert set(page.sections) >= {"figures", "confusion", "classes", "calibration", "pictures", "training", "data"}
    assert "1 held-out picture is in train too" in page.sections["data"]
    assert "vit-finetune train 'a b.yaml'" in page.sections["origin"]
    assert "20.0 s" in page.sections["cost"] and "1.0 GB" in page.text
    assert page.sections["header"].count(".") >= 2


def test_report__pictures_are_gone_or_have_moved(tmp_path: Path) -> None:
    """Without its pictures a run has the same report and says so; a folder that they moved to is looked through."""
    labels = np.arange(30) % 3
    run = write_run(tmp_path / "run", labels, guesses(labels, 3), "abc")
    add_pictures(run, tmp_path / "set", labels, "abc")
    whole = _Page(write_report(run, attention=False))
    (tmp_path / "set").rename(tmp_path / "moved")
    gone = _Page(write_report(run, attention=False))
    assert "No picture can be shown" in gone.text and not any("jpeg" in address for address in gone.addresses)
    moved = _Page(write_report(run, pictures=tmp_path / "moved", attention=False))
    assert moved.addresses == whole.addresses
    changed = next((tmp_path / "moved/val").iterdir())
    for path in (tmp_path / "moved/val").iterdir():
        if path != changed:
            shutil.copyfile(changed, path)
    assert "not the one that the run saw" in _Page(write_report(run, pictures=tmp_path / "moved", attention=False)).text
    with pytest.raises(RequestError, match="is no folder of pictures"):
        write_report(run, pictures=tmp_path / "nowhere")


@pytest.mark.parametrize("num_classes", [2, 3, 25, 1000])
def test_confusion__is_readable_at_any_number_of_classes(tmp_path: Path, num_classes: int) -> None:
    """Few classes are all in the table; of many it has those that are confused most, and a picture has all."""
    labels = np.arange(2000) % num_classes
    run = write_run(
        tmp_path / "run", labels, guesses(labels, num_classes, skill=4.0), [f"c{k}" for k in range(num_classes)]
    )
    scored = read_scored(run / "predictions.parquet", read_run(run).class_names)
    confusion = confusion_of(scored)
    assert len(confusion.names) == min(num_classes, MOST_IN_TABLE)
    assert bool(confusion.picture) == (num_classes > MOST_IN_TABLE)
    shown = np.sum(confusion.rows) + np.sum(confusion.elsewhere)
    assert shown == sum(int((labels == int(name[1:])).sum()) for name in confusion.names)
    if num_classes > MOST_IN_TABLE:
        first = confusion.pairs[0]
        places = [confusion.names.index(f"c{k}") for k in (first.label, first.guess)]
        assert abs(places[0] - places[1]) == 1
    assert "confusion" in _Page(write_report(run, attention=False)).sections


def test_report__of_a_hundred_thousand_pictures_is_small(tmp_path: Path) -> None:
    """A large evaluation gives a small page in seconds."""
    labels = np.arange(100_000) % 40
    run = write_run(tmp_path / "run", labels, guesses(labels, 40), [f"class {k}" for k in range(40)])
    before = time.perf_counter()
    path = write_report(run, attention=False)
    assert time.perf_counter() - before < 60
    assert path.stat().st_size < 300_000


def test_report__of_many_classes_is_small(tmp_path: Path) -> None:
    """Of more than 1,000 classes the table has those that are recognised least, and says so."""
    labels = np.arange(2400) % 1200
    path = write_report(write_run(tmp_path / "run", labels, guesses(labels, 1200), [f"c{k}" for k in range(1200)]))
    assert "The 1 000 of 1 200 classes that are recognised least" in _Page(path).sections["classes"]
    assert path.stat().st_size < 2_000_000


def test_report__several_classes_a_picture(tmp_path: Path) -> None:
    """A run with lists of classes gets average precision, thresholds and their curves, also for a label nobody has."""
    rng = np.random.default_rng(0)
    labels = (rng.random((120, 4)) < 0.3).astype(np.uint8)
    labels[:, 3] = 0
    probabilities = np.clip(0.3 * labels + rng.normal(0.35, 0.2, (120, 4)), 0, 1).astype(np.float32)
    names = ("a", "b", "c", HOSTILE[0])
    run = write_run(tmp_path / "run", labels, probabilities, names)
    add_pictures(run, tmp_path / "pictures", labels, names)
    page = _Page(write_report(run))
    assert "mean average precision" in page.sections["figures"] and "micro-F1" in page.sections["figures"]
    assert "threshold" in page.sections["classes"] and HOSTILE[0] in page.sections["classes"]
    assert page.sections["thresholds"].count("average precision") == 3
    assert "get exactly their labels" in page.sections["header"]
    assert "confusion" not in page.sections
    told = page.sections["pictures"]
    for k, row in enumerate(json.loads((run / "metrics.json").read_text(encoding="utf-8"))["per_class"][:3]):
        has, scores, said = labels[:, k] == 1, probabilities[:, k], probabilities[:, k] >= row["threshold"]
        wrong, missed = sorted(scores[~has & said])[::-1], sorted(scores[has & ~said])
        assert len(wrong) > 0 and len(missed) > 0
        assert told.count(f"{names[k]} said of") == min(2, len(wrong))
        assert told.count(f"{names[k]} missed in") == min(2, len(missed))
        assert all(f", {100 * share:.1f}" in told for share in (*wrong[:2], *missed[:2]))
    assert f"{names[3]} said of" not in told
    assert len([address for address in page.addresses if address.startswith("data:image/jpeg")]) >= 6


def test_report__energy(tmp_path: Path) -> None:
    """Joules are added up over the rows and told in watt-hours; what has no counter is told with the reason."""
    labels = np.arange(30) % 3
    run = write_run(tmp_path / "run", labels, guesses(labels, 3), "abc")
    rows = [{"step": 41, "processors_joules": 30_000.0, "no_gpu_joules": "no <driver>"}]
    rows += [{"step": 42, "processors_joules": 6_000.0}]
    with (run / "timing.jsonl").open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    told = _Page(write_report(run, attention=False)).sections["cost"]
    assert "36.0 kJ (10 Wh)" in told.replace("\N{NO-BREAK SPACE}", " ")
    assert "not known on this machine: no <driver>" in told


def test_report__of_a_run_that_has_not_ended(tmp_path: Path) -> None:
    """A run that is going on has its curves and its plan; one without pictures to score says that nothing is known."""
    labels = np.arange(30) % 3
    run = write_run(tmp_path / "run", labels, guesses(labels, 3), "abc")
    (run / "metrics.json").unlink()
    page = _Page(write_report(run))
    assert f"vit-finetune train {run} --resume" in page.sections["header"]
    assert "training" in page.sections and "figures" not in page.sections
    (run / "metrics.json").write_text('{"best_step": 3, "num_steps": 3}', encoding="utf-8")
    assert "Nobody knows how good this model is" in _Page(write_report(run)).sections["header"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "config.yaml").unlink(), "is no run's folder"),
        (lambda run: (run / "metrics.json").write_text("{", encoding="utf-8"), "cannot read .*metrics.json"),
        (lambda run: (run / "predictions.parquet").write_bytes(b"PAR1"), "cannot read .*predictions.parquet"),
        (lambda run: (run / "plan.json").write_text("[]", encoding="utf-8"), "it holds no object"),
    ],
)
def test_report__damaged_folder(tmp_path: Path, damage: object, message: str) -> None:
    """A folder that is no run, or a damaged file in it, is one line that names it."""
    labels = np.arange(30) % 3
    run = write_run(tmp_path / "run", labels, guesses(labels, 3), "abc")
    damage(run)  # type: ignore[operator]
    with pytest.raises(RequestError, match=message):
        write_report(run)
    assert not (run / REPORT_FILE).exists()


def test_report__at_the_end_of_a_run(tmp_path: Path) -> None:
    """A run writes its report with its model's attention; `run.report: off` leaves it out; the verb repeats it."""
    root = make_pictures(tmp_path / "set")
    finetune(tiny_config(root, tmp_path / "run", run={"report": "auto"}))
    page = _Page(tmp_path / "run" / REPORT_FILE)
    assert page.sections["pictures"].count("attention rollout") == 1
    shown = [address for address in page.addresses if address.startswith("data:image/jpeg")]
    assert len(shown) >= 24 and len(set(shown)) == len(shown)  # close decisions, and what the model looked at in each
    assert (tmp_path / "run/run.log").read_text(encoding="utf-8").count(
        f"report   {tmp_path / 'run' / REPORT_FILE}"
    ) == 1
    done = run_module(["report", str(tmp_path / "run"), "--output", str(tmp_path / "again.html"), "--no-attention"])
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 'again.html'}\n", "")
    assert _Page(tmp_path / "again.html").sections["figures"] == page.sections["figures"]
    finetune(tiny_config(root, tmp_path / "quiet", run={"report": "off"}))
    assert not (tmp_path / "quiet" / REPORT_FILE).exists()
    metrics = json.loads((tmp_path / "run/metrics.json").read_text(encoding="utf-8"))
    assert f"{100 * metrics['accuracy']:.1f}" in page.sections["figures"]


def test_report__that_fails_fails_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report that cannot be written is one line; the run is done and its model is there."""
    monkeypatch.setattr("vit_finetune.report.at_end.write_report", lambda *_, **__: 1 / 0)
    root, run = make_pictures(tmp_path / "set", train=4, val=2), {"report": "auto"}
    config = tiny_config(root, tmp_path / "run", train={"steps": 1}, run=run)
    finetune({**config, "evaluation": {}, "schedule": {}})
    log = (tmp_path / "run/run.log").read_text(encoding="utf-8")
    assert "report   not written: division by zero; try again by: vit-finetune report" in log
    assert (tmp_path / "run/model/model.safetensors").is_file()
