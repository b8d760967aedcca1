"""The page of runs in a browser: it needs nothing else, shows the files' numbers, and follows a run."""

from __future__ import annotations

import itertools
import shutil
import threading

import pytest

from alphadecay_dist import cli
from alphadecay_dist.commands.page.serve import PageServer
from alphadecay_dist.training.outputs.run_files import RunFiles, read_lines
from tests.commands.page.browser import Tab
from tests.commands.page.written import NAMES, STEPS, UNDEFINED, write_refresh, write_run, write_update

pytestmark = pytest.mark.launcher


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with everything, and one of another policy with updates alone."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "decayed")
    for step in range(1, 20):
        write_update(folder / "plain", step)
    RunFiles(folder / "plain").status("running", 19)
    return folder


@pytest.fixture(scope="module")
def address(runs):
    page = runs / "report.html"
    assert cli.main(["report", str(runs / "decayed"), str(runs / "plain"), "--out", str(page)]) == 0
    return page.as_uri()


def move(tab, place):
    """Move the slider."""
    tab.page.locator("#refresh").fill(str(place))
    tab.drawn()


def test_the_page_is_whole_in_light_and_dark_wide_and_narrow(browser, address):
    grounds = set()
    for scheme, width in itertools.product(("light", "dark"), (1440, 400)):
        tab = Tab(browser, width, scheme).open(address)
        assert tab.complaints == []
        assert tab.page.evaluate("document.documentElement.scrollWidth") == width
        figures = tab.page.locator(".figure:visible")
        assert figures.count() == figures.locator(".main-svg").count() // 3 == 6 + 4 + 2 + 1 + 3 + 3
        sizes = figures.evaluate_all("all => all.map(own => own.getBoundingClientRect().right)")
        assert max(sizes) <= width
        grounds.add(tab.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert tab.page.evaluate("document.documentElement.dataset.theme") == scheme
        tab.page.close()
    assert len(grounds) == 2


def test_the_switch_goes_over_light_and_dark_whatever_the_system_has(browser, address):
    tab = Tab(browser, 1440, "dark").open(address)
    found = []
    for _ in range(3):
        tab.page.locator("#theme").click()
        tab.drawn()
        ink = tab.page.evaluate("document.getElementById('curve-loss').layout.hoverlabel.bgcolor")
        found.append((tab.page.locator("#theme").inner_text(), ink))
    assert found == [("theme: light", "#f6f7f9"), ("theme: dark", "#1c2027"), ("theme: system", "#1c2027")]
    assert tab.complaints == []


def test_the_slider_and_the_chosen_module_show_the_files_numbers(browser, runs, address):
    tab = Tab(browser, 1440, "light").open(address)
    lines = read_lines(runs / "decayed" / "decay.jsonl")
    spectra = {line["step"]: line["modules"] for line in read_lines(runs / "decayed" / "spectra.jsonl")}
    told = tab.page.locator("#refresh-told")
    assert told.inner_text() == "at update 20 (3 of 3)"
    for place, step in enumerate(STEPS):
        move(tab, place)
        assert told.inner_text() == f"at update {step} ({place + 1} of 3)"
        for key, figure in (("alpha", "map-alpha"), ("weight_decay", "map-weight_decay")):
            modules = lines[place]["modules"]
            rows = [[modules[f"model.layers.{n}.{part}"][key] for n in range(3)] for part in _parts()]
            (drawn,) = tab.traces(figure)
            for own, row in zip(drawn["z"], rows, strict=True):
                assert own == [pytest.approx(value, rel=1e-5) if value else None for value in row]
            labels = tab.page.locator(f"#{figure} .heatmap-label").all_text_contents()
            assert [float(text) for text in labels] == [
                pytest.approx(value, rel=5e-3) for row in rows for value in row if value
            ]
        for name in (NAMES[3], UNDEFINED):
            tab.page.locator("#module").select_option(name)
            tab.drawn()
            facts, module = tab.facts(), lines[place]["modules"][name]
            assert facts["module"] == name
            assert facts["status"] == module["status"]
            assert facts["owner"] == f"rank {module['owner']}"
            assert float(facts["weight decay"]) == pytest.approx(module["weight_decay"], rel=1e-4)
            if module["alpha"] is None:
                assert facts["alpha"] == "–"
                continue
            assert float(facts["alpha"]) == pytest.approx(module["alpha"], rel=1e-4)
            if step in spectra:
                histogram = spectra[step][name]
                assert float(facts["xmin"]) == pytest.approx(histogram["xmin"], rel=1e-4)
                assert facts["tail"] == f"{histogram['tail']} of 64 eigenvalues"
                _check_spectrum(tab.traces("density"), step, histogram)
    assert tab.complaints == []


def _parts():
    return [name.removeprefix("model.layers.0.") for name in NAMES[:3]]


def _check_spectrum(traces, step, histogram):
    """The points are the histogram as a density; the line is the fitted law from xmin on."""
    named = f"{step}: "
    points, law = next(
        pair for pair in itertools.pairwise(traces) if pair[0].get("name", "").startswith(named)
    )
    width = (histogram["high"] - histogram["low"]) / len(histogram["counts"])
    expected = [
        count
        / 64
        / (10 ** (histogram["low"] + (place + 1) * width) - 10 ** (histogram["low"] + place * width))
        for place, count in enumerate(histogram["counts"])
        if count
    ]
    assert points["y"] == pytest.approx(expected, rel=1e-3)
    assert law["x"][0] == pytest.approx(histogram["xmin"], rel=1e-4)
    share = (histogram["alpha"] - 1) / histogram["xmin"] * histogram["tail"] / 64
    assert law["y"][0] == pytest.approx(share, rel=1e-3)
    assert law["y"][-1] == pytest.approx(
        share * (10 ** histogram["high"] / histogram["xmin"]) ** -histogram["alpha"], rel=1e-2
    )


def test_a_cell_of_the_map_chooses_its_module(browser, address):
    tab = Tab(browser, 1440, "light").open(address)
    cells = tab.page.locator("#map-alpha .nsewdrag")
    cells.scroll_into_view_if_needed()
    box = cells.bounding_box()
    place = {"x": box["width"] * 5 / 6, "y": box["height"] / 2}
    cells.hover(position=place)
    tab.page.wait_for_selector("#map-alpha .hovertext")  # what is clicked is what is hovered over
    cells.click(position=place)
    tab.until("document.querySelector('#numbers dd').textContent !== 'model.layers.0.self_attn.q_proj'")
    assert tab.facts()["module"] == "model.layers.2.mlp.down_proj"


def test_runs_stand_side_by_side_with_marks_work_and_what_was_undefined(browser, runs, address):
    tab = Tab(browser, 1440, "light").open(address)
    head, *rows = tab.rows("#runs")
    found = [dict(zip(head, row, strict=True)) for row in rows]
    assert [(row["run"], row["state"], row["update"]) for row in found] == [
        ("decayed", "finished", "30"),
        ("plain", "running", "19"),
    ]
    assert float(found[0]["perplexity"]) == pytest.approx(90.0171, rel=1e-3)
    metrics = read_lines(runs / "decayed" / "metrics.jsonl")
    for figure, key in (
        ("loss", "loss"),
        ("lr", "lr"),
        ("grad_norm", "grad_norm"),
        ("speed", "tokens_per_second"),
    ):
        drawn = tab.traces(f"curve-{figure}")[0]
        assert drawn["x"] == [line["step"] for line in metrics]
        assert drawn["y"] == pytest.approx([line[key] for line in metrics], rel=1e-5)
    marks = tab.page.locator("#marks p").all_inner_texts()
    assert [mark.split(",")[0] for mark in marks] == [
        "decayed: preempted after update 15 (SIGTERM)",
        "decayed: resumed after update 15",
    ]
    assert tab.rows("#status")[1:] == [[UNDEFINED, "zero", "1", "20", "20"]]
    assert tab.traces("owners")[0]["y"] == [5, 4]
    assert tab.traces("received")[0]["y"] == [1, 3]
    assert tab.traces("seconds")[0]["y"] == pytest.approx([0.25, 0.35, 0.45])
    assert tab.traces("condition-nr")[0]["y"][:2] == [13, 16]


def test_a_served_page_follows_a_run_and_keeps_what_is_chosen(browser, tmp_path):
    run = write_run(tmp_path / "run")
    with PageServer([run], 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            tab = Tab(browser, 1440, "light").open(server.url)
            tab.page.evaluate("window.same = document.getElementById('map-alpha')")
            write_refresh(run, 30)
            tab.until("document.getElementById('refresh-told').textContent.includes('of 4')")
            assert (
                tab.page.locator("#refresh-told").inner_text() == "at update 30 (4 of 4)"
            )  # it was at the end
            move(tab, 1)
            write_update(run, 31)
            tab.until("document.getElementById('curve-loss').data[0].x.at(-1) === 31")
            assert tab.page.locator("#refresh-told").inner_text() == "at update 10 (2 of 4)"
            assert tab.page.evaluate("window.same === document.getElementById('map-alpha')")  # not drawn anew
            assert tab.page.locator("#live").inner_text() == "following"
            assert tab.complaints == []
        finally:
            server.shutdown()


def test_a_run_that_is_removed_is_lost_and_found_again_with_other_modules(browser, tmp_path):
    run = write_run(tmp_path / "run")
    with PageServer([run], 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            tab = Tab(browser, 1440, "light").open(server.url)
            tab.page.locator("#module").select_option(NAMES[-1])
            shutil.rmtree(run)
            live = tab.page.locator("#live[data-state=lost]")
            live.wait_for()
            assert "found no line in" in live.get_attribute("title")
            module = {"alpha": 3.0, "weight_decay": 0.1, "owner": None, "status": "assigned"}
            RunFiles(run).append("decay.jsonl", {"step": 0, "seconds": 1, "modules": {"layers.0.up": module}})
            tab.page.locator("#live[data-state=following]").wait_for()
            assert (tab.facts()["module"], tab.facts()["owner"]) == ("layers.0.up", "–")
            assert all("503" in text for text in tab.complaints)  # of the browser itself
        finally:
            server.shutdown()


def test_names_are_texts_whatever_they_hold(browser, tmp_path):
    name = "layers.0.</script><script>document.title='broken'</script>.<b>up</b>"
    run = tmp_path / "<i>run & 'other'"
    module = {"alpha": 3.0, "weight_decay": 0.1, "owner": 0, "status": "<u>assigned"}
    RunFiles(run).append("decay.jsonl", {"step": 0, "seconds": 1, "modules": {name: module}})
    write_update(run, 1)
    page = tmp_path / "report.html"
    assert cli.main(["report", str(run), f"--out={page}"]) == 0
    tab = Tab(browser, 1440, "light").open(page.as_uri())
    assert tab.page.title() == "AlphaDecay: <i>run & 'other'"
    assert tab.facts()["module"] == name
    assert tab.rows("#runs")[1][0] == "<i>run & 'other'"
    kind = tab.page.locator("#map-alpha .ytick text").text_content()
    assert kind == "<b>up</b>"
    assert tab.page.locator("#map-alpha b").count() == 0
    assert tab.complaints == []


def test_a_page_runs_no_script_but_its_own(browser, address):
    tab = Tab(browser, 1440, "light").open(address)
    tab.page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.other = 1'}))"
    )
    assert tab.page.evaluate("window.other") is None
    (complaint,) = tab.complaints
    assert "Content Security Policy" in complaint


def test_a_gap_of_the_map_is_marked_and_tells_its_status(browser, address):
    tab = Tab(browser, 1440, "light").open(address)
    assert tab.page.locator("#map-alpha .annotation-text").all_text_contents() == ["×"]
    box = tab.page.locator("#map-alpha .nsewdrag").bounding_box()
    tab.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] * 5 / 6)
    told = tab.page.locator("#map-alpha .hovertext")
    told.wait_for()
    assert told.text_content() == f"{UNDEFINED}: – (zero)"


def test_figures_are_drawn_as_the_reader_comes_near_and_all_on_paper(browser, address):
    tab = Tab(browser, 1440, "dark", height=900).open(address)
    drawn = "document.querySelectorAll('.figure .main-svg').length / 3"
    first = tab.page.evaluate(drawn)
    assert 6 <= first < 12
    tab.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.page.evaluate(drawn) == 19
    ink = "document.getElementById('received').layout.hoverlabel.bgcolor"
    assert tab.page.evaluate(ink) == "#f6f7f9"  # a light one's
    tab.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.page.evaluate("document.documentElement.dataset.theme") == "dark"
    tab.page.locator("#received").scroll_into_view_if_needed()
    tab.until(f"{ink} === '#1c2027'")
    assert tab.complaints == []


def test_a_run_of_another_kind_is_shown_as_what_it_is(browser, tmp_path):
    """Learning rates instead of decays, top-1 instead of perplexity, a skipped update, no spectra."""
    files = RunFiles(tmp_path / "rates")
    for step in (1, 2, 3):
        speed = {"images_per_second": 5.0, "step_seconds": 1.0}
        files.append("metrics.jsonl", {"step": step, "loss": 2.0, "skipped": step == 2, **speed})
    files.append("eval.jsonl", {"step": 3, "loss": 2.0, "top1": 61.5, "top5": 90.0})
    for step in (0, 2):
        module = {"alpha": 3.0, "weight_decay": 0.1, "lr_ratio": 1.0 + step, "owner": 0, "status": "assigned"}
        files.append("decay.jsonl", {"step": step, "seconds": 1, "modules": {"blocks.0.mlp.fc1": module}})
    write_run(tmp_path / "decayed")
    page = tmp_path / "report.html"
    assert cli.main(["report", str(tmp_path / "rates"), str(tmp_path / "decayed"), f"--out={page}"]) == 0
    tab = Tab(browser, 1440, "light").open(page.as_uri())
    rates = dict(zip(*tab.rows("#runs")[:2], strict=True))
    assert (rates["top1"], rates["perplexity"]) == ("61.5", "–")
    assert "rates: update 2 was skipped" in tab.page.locator("#marks p").all_inner_texts()
    titles = [tab.page.locator(f".panel:has(#curve-{key}) h3").inner_text() for key in ("shown", "speed")]
    assert titles == ["top1, perplexity of the evaluations", "images, tokens per second"]
    assert [own["name"] for own in tab.traces("history")] == ["alpha", "learning rate, in base rates"]
    assert tab.traces("history")[1]["y"] == [1, 3]
    assert tab.facts()["learning rate, in base rates"] == "3"
    tab.page.locator("#run").select_option("decayed")
    tab.drawn()
    places = "[...document.querySelectorAll('#spectrum .figure')].map(own => own.id)"
    assert tab.page.evaluate(places) == ["density", "history"]
    assert tab.complaints == []
