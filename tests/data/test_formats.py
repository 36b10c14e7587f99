"""Each named format, read from a few lines written as its publishers write them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forethought.cli import main
from forethought.data.dataset import Dataset
from forethought.data.detection import locate
from forethought.data.formats import FORMATS
from forethought.data.interactions import Interactions
from forethought.errors import DataError
from tests.data.logs import sequences_of

ITEMS = {"Alpha": ["Drama", "War"], "Beta: Two": ["Comedy"], 'Gamma "3"': []}


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder


def json_lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def python_lines(*records: dict[str, Any]) -> str:
    return "".join(repr(record) + "\n" for record in records)


def reviews(**more: Any) -> list[dict[str, Any]]:
    """Amazon reviews, newest first; the second id looks like a number."""
    return [
        {"reviewerID": "A1", "asin": asin, "overall": float(stars), "unixReviewTime": time, **more}
        for asin, stars, time in (("B0G", 1, 1400000300), ("0205616461", 4, 1400000200), ("B0A", 5, 1400000100))
    ]


AMAZON_IDS = ["B0A", "0205616461", "B0G"]
AMAZON_META = [
    {"asin": "B0A", "title": "Alpha", "categories": [["Drama", "War"]], "price": 3.5},
    {"asin": "0205616461", "title": "Beta: Two", "categories": [["Comedy"]]},
    {"asin": "B0G", "title": 'Gamma "3"', "categories": [[]]},
]
MOVIES_CSV = 'movieId,title,genres\n1,Alpha,Drama|War\n2,Beta: Two,Comedy\n3,"Gamma ""3""",(no genres listed)\n'
MOVIES_DAT = '1::Alpha::Drama|War\n2::Beta: Two::Comedy\n3::Gamma "3"::\n'


def movielens(folder: Path) -> Path:
    ratings = "userId,movieId,rating,timestamp\n7,3,1.0,1400000300\n7,2,4.0,1400000200\n7,1,5.0,1400000100\n"
    return write(folder, {"ratings.csv": ratings, "movies.csv": MOVIES_CSV, "links.csv": "movieId,imdbId\n1,5\n"})


def movielens_dat(folder: Path) -> Path:
    ratings = "7::3::1::1400000300\n7::2::4::1400000200\n7::1::5::1400000100\n"
    return write(
        folder, {"ratings.dat": ratings, "movies.dat": MOVIES_DAT.encode("latin-1"), "users.dat": "7::F::1::1::1\n"}
    )


def amazon_2014(folder: Path) -> Path:
    files = {
        "reviews_Films_5.json.gz": json_lines(*reviews(helpful=[0, 0])),
        "meta_Films.json.gz": python_lines(*AMAZON_META),
    }
    return write(folder, files)


def amazon_2014_loose(folder: Path) -> Path:
    return write(
        folder, {"reviews_Films.json.gz": python_lines(*reviews()), "meta_Films.json.gz": python_lines(*AMAZON_META)}
    )


def amazon_2014_ratings(folder: Path) -> Path:
    lines = "".join(f"{r['reviewerID']},{r['asin']},{r['overall']},{r['unixReviewTime']}\n" for r in reviews())
    return write(folder, {"ratings_Films.csv": lines, "meta_Films.json.gz": python_lines(*AMAZON_META)})


def amazon_2018(folder: Path) -> Path:
    meta = [{**row, "category": row["categories"][0]} for row in AMAZON_META]
    files = {
        "Films_5.json.gz": json_lines(*reviews(verified=True, style={"Format:": "x"})),
        "meta_Films.json.gz": json_lines(*meta),
    }
    return write(folder, files)


def amazon_2018_whole(folder: Path) -> Path:
    amazon_2018(folder)
    (folder / "Films_5.json.gz").rename(folder / "Films.json.gz")
    return folder


def amazon_2018_ratings(folder: Path) -> Path:
    lines = "".join(f"{r['asin']},{r['reviewerID']},{r['overall']},{r['unixReviewTime']}\n" for r in reviews())
    meta = [{**row, "category": row["categories"][0]} for row in AMAZON_META]
    return write(folder, {"Films.csv": lines, "meta_Films.json.gz": json_lines(*meta)})


def amazon_2023(folder: Path) -> Path:
    events = [
        {"rating": r["overall"], "title": "Nice", "asin": "variant", "parent_asin": r["asin"], "user_id": "A1",
         "timestamp": 1000 * r["unixReviewTime"] + 7} for r in reviews()
    ]  # fmt: skip
    meta = [
        {"parent_asin": m["asin"], "title": m["title"], "categories": m["categories"][0], "description": ["A", "B"]}
        for m in AMAZON_META
    ]
    return write(folder, {"Films.jsonl.gz": json_lines(*events), "meta_Films.jsonl.gz": json_lines(*meta)})


def amazon_2023_ratings(folder: Path) -> Path:
    lines = "".join(f"A1,{r['asin']},{r['overall']},{1000 * r['unixReviewTime']}\n" for r in reviews())
    meta = [{"parent_asin": m["asin"], "title": m["title"], "categories": m["categories"][0]} for m in AMAZON_META]
    return write(
        folder,
        {"Films.csv.gz": "user_id,parent_asin,rating,timestamp\n" + lines, "meta_Films.jsonl.gz": json_lines(*meta)},
    )


def steam(folder: Path) -> Path:
    days = {"10": "2014-05-13", "20": "2014-05-14", "30": "2014-05-15"}
    events = "".join(
        f"{{u'username': u'Zoë', u'product_id': u'{i}', u'date': u'{d}', u'hours': 1.5}}\n"
        for i, d in reversed(days.items())
    )
    games = python_lines(*({"id": i, "title": t, "genres": g} for i, (t, g) in zip(days, ITEMS.items(), strict=True)))
    return write(folder, {"steam_reviews.json.gz": events, "steam_games.json.gz": games})


def yelp(folder: Path) -> Path:
    events = [
        {
            "review_id": "r",
            "user_id": "A1",
            "business_id": i,
            "stars": 4.0,
            "date": f"2014-05-1{day} 10:00:00",
            "text": "…",
        }
        for i, day in (("_c", 5), ("_b", 4), ("_a", 3))
    ]
    names = zip(("_a", "_b", "_c"), ITEMS.items(), strict=True)
    business = [
        {"business_id": i, "name": title, "categories": ", ".join(kinds) or None} for i, (title, kinds) in names
    ]
    files = {"review": json_lines(*events), "business": json_lines(*business)}
    return write(folder, {f"yelp_academic_dataset_{name}.json": content for name, content in files.items()})


def recbole(folder: Path) -> Path:
    events = "user_id:token\titem_id:token\trating:float\ttimestamp:float\nu\t3\t1\t3.0\nu\t2\t4\t2.0\nu\t1\t5\t1.0\n"
    items = "item_id:token\ttitle:token_seq\tcategories:token_seq\n"
    items += '1\tAlpha\tDrama, War\n2\tBeta: Two\tComedy\n3\tGamma "3"\t\n'
    return write(folder, {"films.inter": events, "films.item": items})


def recbole_movielens(folder: Path) -> Path:
    recbole(folder)
    items = "item_id:token\tmovie_title:token_seq\trelease_year:token\tgenre:token_seq\n"
    items += '1\tAlpha\t1995\tDrama War\n2\tBeta: Two\t1995\tComedy\n3\tGamma "3"\t\t\n'
    return write(folder, {"films.item": items})


@pytest.mark.parametrize(
    ("build", "name", "user", "items"),
    [
        (movielens, "movielens", 7, [1, 2, 3]),
        (movielens_dat, "movielens-dat", 7, [1, 2, 3]),
        (amazon_2014, "amazon-2014", "A1", AMAZON_IDS),
        (amazon_2014_loose, "amazon-2014", "A1", AMAZON_IDS),
        (amazon_2014_ratings, "amazon-2014-ratings", "A1", AMAZON_IDS),
        (amazon_2018, "amazon-2018", "A1", AMAZON_IDS),
        (amazon_2018_whole, "amazon-2018", "A1", AMAZON_IDS),
        (amazon_2018_ratings, "amazon-2018-ratings", "A1", AMAZON_IDS),
        (amazon_2023, "amazon-2023", "A1", AMAZON_IDS),
        (amazon_2023_ratings, "amazon-2023-ratings", "A1", AMAZON_IDS),
        (steam, "steam", "Zoë", ["10", "20", "30"]),
        (yelp, "yelp", "A1", ["_a", "_b", "_c"]),
        (recbole, "recbole", "u", [1, 2, 3]),
        (recbole_movielens, "recbole", "u", [1, 2, 3]),
    ],
)
def test_named_format(build: Callable[[Path], Path], name: str, user: object, items: list[Any], tmp_path: Path) -> None:
    path = build(tmp_path)
    dataset = Interactions.read(path, name).prepare()
    assert sequences_of(dataset) == {user: items}
    numbers = dataset.catalog.encode(items)
    assert [dataset.catalog.title(item) for item in numbers] == list(ITEMS)
    assert [dataset.catalog.categories(item) for item in numbers] == list(ITEMS.values())
    assert (dataset.sequences.ratings is None) == (name == "steam")
    assert dataset.sequences.times is not None
    # no name for a reader can tell 'user,item' from 'item,user' without a header, and it does not try
    if name != "amazon-2018-ratings":
        assert Interactions.read(path).provenance["reader"] == name
    (file,) = Interactions.read(path, name).provenance["sha256"]
    assert sequences_of(Interactions.read(path / file, name).prepare()) == {user: items}


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_movielens_titles_in_either_encoding(encoding: str, tmp_path: Path) -> None:
    movielens_dat(tmp_path)
    (tmp_path / "movies.dat").write_bytes("1::Amélie::Drama\n".encode(encoding))
    assert Interactions.read(tmp_path).prepare().catalog.title(1) == "Amélie"


def test_user_item_lines(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("1 5\n1 3\n2 9\n1 4\n2 8\n2 7\n")
    interactions = Interactions.read(tmp_path / "log.txt")
    assert interactions.provenance["reader"] == "user-item"
    assert sequences_of(interactions.prepare()) == {1: [5, 3, 4], 2: [9, 8, 7]}


@pytest.mark.parametrize("odd", ["1 5 \n", "1  5\n", "\t1 5\n", "1\t5\n", "1 5\r\n", "\n1 5\n"])
def test_user_item_lines_of_any_spacing(odd: str, tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text(f"1 4\n{odd}1 6\n2 5\n")
    assert sequences_of(Interactions.read(tmp_path / "log.txt", "user-item").prepare()) == {1: [4, 5, 6], 2: [5]}


@pytest.mark.parametrize("layout", ["user-item", "user-sequence"])
def test_ids_in_lines_may_hold_quotes_and_other_white_space(layout: str, tmp_path: Path) -> None:
    items = ['"a"', "b\u00a0c", "d\u3000e", "f\u2028g", "'", "#h"]
    lines = [f"u\u00a0v {item}" for item in items] if layout == "user-item" else [" ".join(["u\u00a0v", *items])]
    (tmp_path / "log.txt").write_text("\n".join(lines) + "\n")
    assert sequences_of(Interactions.read(tmp_path / "log.txt", layout).prepare()) == {"u\u00a0v": items}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("user item timestamp\nada lamp 7\n", "begins with 'user item timestamp', which are names of columns"),
        ("User_id  itemId\nada lamp\n", "begins with 'User_id itemId', which are names of columns"),
        ("ada lamp 1700000000\nbob lamp 1700000001\n", "has lines such as 'ada lamp 1700000000', which end in a time"),
        ("1 10 5 1700000000000\n2 10 4 1700000001000\n", "has lines .*, which end in a time"),
    ],
)
def test_columns_parted_by_spaces_are_no_sequences(content: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"log\.txt is parted by spaces and {sentence}.*--format user-item"):
        Interactions.read(path)
    assert len(Interactions.read(path, "user-sequence", ids="text")) > 1


def test_a_header_with_colons_is_a_header(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user,item,timestamp,a::b\nu,x,1,2\nu,y,2,3\n")
    assert Interactions.read(path).provenance["reader"] == "csv"


def test_user_sequence_lines(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("ann 5 3 4\r\nbob   9 8 7\r\n\r\nann 6\n")
    interactions = Interactions.read(tmp_path / "log.txt")
    assert interactions.provenance["reader"] == "user-sequence"
    assert sequences_of(interactions.prepare()) == {"ann": [5, 3, 4, 6], "bob": [9, 8, 7]}
    (tmp_path / "log.txt").write_text("ann 5 3 4\nbob\ncid 1 2 3\n")
    with pytest.raises(DataError, match="line 2 has the user 'bob' and no item"):
        Interactions.read(tmp_path / "log.txt")
    assert Interactions.read(tmp_path / "log.txt", on_error="drop").dropped == {"malformed line": 1}


@pytest.mark.parametrize(
    "stems", [("user-split-train", "user-split-valid", "user-split-test"), ("train_data", "valid_data", "test_data")]
)
def test_preferdiff_keeps_its_split(stems: tuple[str, ...], tmp_path: Path) -> None:
    for stem, content in zip(stems, ("1 2 3\n2 3 4 5\n", "3 1 2\n", "5 4\n1 2 5\n"), strict=True):
        (tmp_path / f"{stem}.txt").write_text(content)
    for path in (tmp_path, tmp_path / f"{stems[1]}.txt"):
        dataset = Interactions.read(path).prepare()
        assert dataset.protocol == "user-split"
        assert sequences_of(dataset) == {1: [1, 2, 3], 2: [2, 3, 4, 5], 3: [3, 1, 2], 4: [5, 4], 5: [1, 2, 5]}
        assert (dataset.train_stop - dataset.sequences.offsets[:-1]).tolist() == [3, 4, 0, 0, 0]
        assert dataset.catalog.decode(dataset.targets("valid").items) == [2]
        assert dataset.catalog.decode(dataset.targets("test").items) == [4, 5]
        assert dataset.manifest["rules"][-1]["given"] is True
        assert len(dataset.manifest["provenance"]["sha256"]) == 3
    assert Interactions.read(tmp_path).prepare(split="leave-one-out").protocol == "leave-one-out"
    (tmp_path / f"{stems[2]}.txt").unlink()
    with pytest.raises(DataError, match=rf"{stems[2]}\.txt does not exist"):
        Interactions.read(tmp_path)


def test_a_folder_of_two_data_sets_is_not_guessed_at(tmp_path: Path) -> None:
    movielens(tmp_path)
    (tmp_path / "sequences.txt").write_text("1 2 3 4\n")
    with pytest.raises(
        DataError, match=r"several data sets: sequences\.txt \(user-sequence\), ratings\.csv \(movielens\)"
    ):
        Interactions.read(tmp_path)
    assert Interactions.read(tmp_path, "movielens").provenance["reader"] == "movielens"


@pytest.mark.parametrize(
    ("build", "name", "more"),
    [
        (amazon_2014, "amazon-2014", ["reviews_Books_5.json.gz"]),
        (amazon_2014_ratings, "amazon-2014-ratings", ["ratings_Books.csv"]),
        (amazon_2018, "amazon-2018", ["Books.json.gz"]),
        (amazon_2023, "amazon-2023", ["Books.jsonl.gz"]),
        (movielens, "movielens", ["ratings.csv.gz"]),
        (recbole, "recbole", ["films.train.inter", "films.valid.inter"]),
    ],
)
def test_of_several_logs_none_is_chosen(
    build: Callable[[Path], Path], name: str, more: list[str], tmp_path: Path
) -> None:
    path = build(tmp_path)
    (first,) = Interactions.read(path, name).provenance["sha256"]
    content = gzip.decompress((path / first).read_bytes()) if first.endswith(".gz") else (path / first).read_bytes()
    write(path, dict.fromkeys(more, content))
    names = ", ".join(sorted(f"{file} ({name})" for file in [first, *more]))
    for form in ("auto", name):
        with pytest.raises(DataError, match=r"holds several data sets: .*; give one of the files") as refusal:
            Interactions.read(path, form)
        assert all(file in str(refusal.value) for file in [first, *more])
    assert names in str(refusal.value)
    assert len(Interactions.read(path / more[0], name)) == 3


def test_a_csv_beside_a_packed_one_is_not_chosen(tmp_path: Path) -> None:
    log = "user,item,timestamp\n1,2,3\n"
    write(tmp_path, {"test.csv": log, "events.csv.gz": log})
    with pytest.raises(DataError, match=r"several data sets: events\.csv\.gz \(csv\), test\.csv \(csv\); give one"):
        Interactions.read(tmp_path)


def test_several_item_files_have_to_be_chosen_from(tmp_path: Path) -> None:
    amazon_2014(tmp_path)
    (tmp_path / "meta_Other.json").write_text(python_lines(*AMAZON_META))
    with pytest.raises(DataError, match="several item files"):
        Interactions.read(tmp_path)
    assert Interactions.read(tmp_path, items=tmp_path / "meta_Other.json").items is not None


def test_columns_may_be_named_over_a_format(tmp_path: Path) -> None:
    path = movielens(tmp_path)
    assert Interactions.read(path, "movielens", time_column="rating").provenance["columns"]["time"] == "rating"


@pytest.mark.parametrize("build", [recbole, movielens], ids=["recbole", "movielens"])
@pytest.mark.parametrize("role", ["user", "time", "rating"])
def test_a_column_that_is_named_has_to_be_there(build: Callable[[Path], Path], role: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"no column 'timestmp' for the {role}; its columns are .*--{role}-column"):
        Interactions.read(build(tmp_path), **{f"{role}_column": "timestmp"})  # type: ignore[arg-type]


def test_a_name_that_is_also_the_usual_one_is_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"username": "ann", "product_id": k, "date": "2024-01-01", "timestamp": 9 - k} for k in range(3)]
    path = write(tmp_path, {"steam_reviews.json": json_lines(*rows)}) / "steam_reviews.json"
    assert sequences_of(Interactions.read(path).prepare()) == {"ann": ["0", "1", "2"]}
    named = Interactions.read(path, time_column="timestamp")
    assert (named.provenance["reader"], named.provenance["columns"]["time"]) == ("steam", "timestamp")
    words = ["data", "prepare", str(path), "--out", str(tmp_path / "out"), "--time-column", "timestamp"]
    assert main(words) == 0
    assert sequences_of(Dataset.open(tmp_path / "out")) == {"ann": ["2", "1", "0"]}
    assert main([*words, "--user-column", "user", "--replace"]) == 2
    assert "no column 'user' for the user; its columns are username, " in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["user-item", "user-sequence"])
@pytest.mark.parametrize("role", ["user", "item", "time", "rating", "action", "session"])
def test_lines_have_no_columns_to_name(layout: str, role: str, tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("1 5\n1 3\n1 4\n")
    with pytest.raises(DataError, match=f"lines of {layout} have no column 'user'; leave --{role}-column out"):
        Interactions.read(tmp_path / "log.txt", layout, **{f"{role}_column": "user"})  # type: ignore[arg-type]
    assert len(Interactions.read(tmp_path / "log.txt", layout, time_column="none")) == 3


def test_every_format_is_described_and_found_by_its_name() -> None:
    for name, form in FORMATS.items():
        assert form.name == name
        assert form.about
        assert set(form.optional) <= {"rating", "time"}
    with pytest.raises(DataError, match="does not exist"):
        locate(Path("nowhere"))
