"""Which pictures the report shows, and what they look like."""

from base64 import b64decode

import cv2
import numpy as np
import pytest
from audited import row, write_audited
from matplotlib.figure import Figure

from gainmtl_lib.audit.report import SHOWN, SIDE, figure_uri, galleries, map_uri, picture_uri, shown_size
from gainmtl_lib.dataset import Picture
from gainmtl_lib.figures import BESIDE, OUTLINE
from gainmtl_lib.metrics import MapScale
from gainmtl_lib.runs import load_run

SCALE = MapScale(1.0, 3.0)


def pixels(uri):
    assert uri.startswith("data:image/jpeg;base64,")
    return cv2.imdecode(np.frombuffer(b64decode(uri.split(",")[1]), np.uint8), cv2.IMREAD_COLOR_RGB).astype(int)


def glow(uri):
    """Red less blue where the map peaks, within the outline; none on grey."""
    return (pixels(uri)[67:72, 67:72] @ [1, 0, -1]).mean()


def rows():
    found = [row("test", 1, p) for p in (0.4, 0.1, 0.3)]
    found += [row("test", 1, 0.9, cam_iou=0.0, point_game=0.0, energy_inside=e) for e in (0.2, 0.1)]
    found += [row("test", 1, 0.9, cam_iou=iou) for iou in (0.2, 0.5, 0.8)]
    found += [row("test", 0, p) for p in (0.6, 0.9, 0.1, 0.2, 0.3)]
    return found


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    peaks = [0.5, 2.0, 2.0] + [2.0] * 10
    run = load_run(write_audited(tmp_path_factory.mktemp("gallery"), rows(), peaks=peaks, pictures=True))
    return galleries(run, run.predictions, ["test"], SCALE)


def test_the_order_is_that_of_the_error_analysis(shown):
    probabilities = {gallery.kind: [case.row["probability"] for case in gallery.cases] for gallery in shown}
    assert probabilities["missed defects"] == [0.1, 0.3, 0.4]
    assert probabilities["false alarms"] == [0.9, 0.6]
    energies = [case.row["energy_inside"] for case in shown[1].cases]
    assert shown[1].kind == "right for the wrong reason" and energies == [0.1, 0.2]
    assert shown[0].meaning == "defective, called normal; lowest probability first"


def test_typical_cases_stand_beside_the_failures(shown):
    find, normal = shown[3:]
    assert (find.kind, find.total, len(find.cases)) == ("typical find", 5, 2)
    assert find.cases[0].row["cam_iou"] == 0.2  # the median of 0, 0, 0.2, 0.5, 0.8
    assert (normal.kind, normal.total) == ("typical pass", 3)
    assert normal.cases[0].row["probability"] == 0.2


def test_a_map_below_the_floor_finds_nothing(shown):
    missed = {case.row["probability"]: case for case in shown[0].cases}
    assert not missed[0.4].finds and missed[0.1].finds
    calm, strong, stretched = (glow(uri) for uri in (missed[0.4].absolute, missed[0.1].absolute, missed[0.4].per_image))
    assert calm < 2 and strong > 10 and stretched > 20  # the same map, stretched, glows


def test_pictures_are_small_and_outlined(shown):
    picture = pixels(shown[0].cases[0].picture)
    assert picture.shape == (SIDE, SIDE, 3)
    # The mask is the box from 8 to 24 of 64 and the thumbnail three times as large: its upper edge lies at 24,
    # its outline beside it.
    edge, inside = (np.abs(picture[row, 26:70] - OUTLINE).mean() for row in (24 - BESIDE, 48))
    assert edge < 0.75 * inside


def outlined(mask):
    """How many pixels of a grey picture's thumbnail have the colour of the outline."""
    shown = pixels(picture_uri(Picture(np.full((512, 512, 3), 128, np.uint8), mask)))
    return int((np.abs(shown - OUTLINE).max(axis=2) < 60).sum())


def test_a_thin_scratch_is_outlined_wherever_it_lies():
    for column in range(100, 110):
        scratch = np.zeros((512, 512), np.uint8)
        scratch[100:400, column] = 1
        assert outlined(scratch) > 200, column
    assert outlined(None) == 0


def test_more_than_twelve_are_counted_not_shown(tmp_path):
    run = load_run(write_audited(tmp_path, [row("test", 1, 0.1) for _ in range(SHOWN + 3)]))
    missed = galleries(run, run.predictions, ["test"], SCALE)[0]
    assert (missed.total, len(missed.cases)) == (SHOWN + 3, SHOWN)


def test_moved_pictures_leave_the_maps(tmp_path):
    run = load_run(write_audited(tmp_path, [row("test", 1, 0.1), row("test", 0, 0.1)]))
    case = galleries(run, run.predictions, ["test"], SCALE)[0].cases[0]
    assert case.picture is None and case.absolute is not None
    alone = pixels(case.per_image)
    assert alone.shape == (SIDE, SIDE, 3) and alone.max() > 200


def test_pictures_are_looked_for_where_they_are_now(tmp_path):
    folder = write_audited(tmp_path / "then", [row("test", 1, 0.1)], pictures=True)
    (tmp_path / "then" / "data").rename(tmp_path / "now")
    run = load_run(folder)
    before, now = (
        galleries(run, run.predictions, ["test"], SCALE, data_root=root) for root in (None, tmp_path / "now")
    )
    assert before[0].cases[0].picture is None and now[0].cases[0].picture is not None


def test_without_an_absolute_scale_there_is_no_verdict_on_the_map(tmp_path):
    run = load_run(write_audited(tmp_path, [row("test", 1, 0.1)]))
    case = galleries(run, run.predictions, ["test"], None)[0].cases[0]
    assert case.absolute is None and case.finds is None and case.per_image


def test_maps_go_with_their_own_rows(tmp_path):
    rows = [row("val", 1, 0.9), row("test", 1, 0.2), row("test", 1, 0.1)]
    run = load_run(write_audited(tmp_path, rows, peaks=[0.0, 0.5, 2.0]))
    surest, second = galleries(run, run.predictions, ["test"], SCALE)[0].cases
    assert surest.finds and not second.finds


@pytest.mark.parametrize(
    ("size", "expected"), [((64, 64), (192, 192)), ((512, 256), (192, 96)), ((32, 512), (12, 192))]
)
def test_thumbnails_keep_the_shape(size, expected):
    assert shown_size(size) == expected


def test_a_map_alone_and_over_a_picture():
    values = np.array([[0.0, 1.0], [0.0, 1.0]], np.float32)
    values = cv2.resize(values, (64, 64))
    alone = pixels(map_uri(values, None))
    assert alone[:, 10].max() < 30 and alone[:, 180].min(axis=0)[0] > 200
    picture = Picture(np.full((64, 64, 3), 255, np.uint8), None)
    over = pixels(map_uri(values, picture))
    assert over[96, 10] == pytest.approx(np.full(3, 255), abs=12)  # a calm map leaves the picture as it is
    assert over[96, 180] == pytest.approx(0.4 * 255 + 0.6 * alone[96, 180], abs=12)
    assert np.abs(pixels(picture_uri(picture)) - 255).max() <= 2


def test_figures_are_the_same_each_time():
    def drawn():
        figure = Figure()
        figure.add_subplot().plot([0, 1], label="한 line")
        return figure_uri(figure)

    assert drawn() == drawn() and drawn().startswith("data:image/svg+xml;base64,")
