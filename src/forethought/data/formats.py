"""The formats people have: how their files are laid out, which columns mean what, and how to tell them apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Layout = Literal["csv", "jsonl", "parquet", "user-item", "user-sequence", "preferdiff", "duckdb"]


@dataclass(frozen=True)
class Table:
    """How one file is written.

    Attributes:
        layout: the family of file.
        delimiter: of a ``csv`` layout; None means it is found from the first line.
        names: the columns where the file has no header line.
        encoding: of the text.
        quoted: fields may stand in double quotes.
        typed_header: names in the header carry a type, ``user_id:token``.
    """

    layout: Layout
    delimiter: str | None = None
    names: tuple[str, ...] | None = None
    encoding: str = "utf-8"
    quoted: bool = True
    typed_header: bool = False


@dataclass(frozen=True)
class Format:
    """A public data format.

    Attributes:
        name: what ``--format`` calls it.
        about: one line for the documentation.
        files: patterns of the file with the events.
        table: how that file is written.
        columns: role (user, item, time, rating, action) to the file's own column name.
        signature: columns in a header that give the format away; empty where the file's name has to.
        item_files: patterns of a file beside it that describes the items.
        item_table: how that file is written.
        item_columns: role (id, title, categories, text) to that file's own column name.
        optional: roles the file may lack.
        text_ids: ids are text even where they look like numbers.
    """

    name: str
    about: str
    files: tuple[str, ...]
    table: Table
    columns: Mapping[str, str] = field(default_factory=dict)
    signature: tuple[str, ...] = ()
    item_files: tuple[str, ...] = ()
    item_table: Table | None = None
    item_columns: Mapping[str, str] = field(default_factory=dict)
    text_ids: bool = False
    optional: tuple[str, ...] = ("rating",)


_JSON = Table("jsonl")  # or one Python dict a line, as the older files are; told apart by their first line
_ATOMIC = Table("csv", "\t", quoted=False, typed_header=True)
_REVIEW = {"user": "reviewerID", "item": "asin", "rating": "overall", "time": "unixReviewTime"}

FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Format("csv", "a delimited file with a header line", ("*.csv", "*.csv.gz"), Table("csv")),
        Format("tsv", "a tab-separated file with a header line", ("*.tsv", "*.tsv.gz"), Table("csv", "\t")),
        Format("parquet", "one Parquet file or a folder of them", ("*.parquet",), Table("parquet")),
        Format("jsonl", "one JSON object a line", ("*.jsonl", "*.jsonl.gz", "*.ndjson", "*.ndjson.gz"), _JSON),
        Format("duckdb", "a DuckDB file with one table", ("*.duckdb",), Table("duckdb")),
        Format("user-item", "'user item' lines in time order", ("sequences-sasrec.txt*",), Table("user-item")),
        Format("user-sequence", "'user item item …' lines", ("sequences.txt*",), Table("user-sequence")),
        Format(
            "preferdiff",
            "'item item …' lines, one user a line, in files of training, validation and test users",
            ("user-split-train.txt*", "train_data.txt*"),
            Table("preferdiff"),
        ),
        Format(
            "movielens",
            "MovieLens ratings.csv and movies.csv",
            ("ratings.csv", "ratings.csv.gz"),
            Table("csv", ","),
            {"user": "userId", "item": "movieId", "rating": "rating", "time": "timestamp"},
            ("userId", "movieId", "rating", "timestamp"),
            ("movies.csv", "movies.csv.gz"),
            Table("csv", ","),
            {"id": "movieId", "title": "title", "categories": "genres"},
        ),
        Format(
            "movielens-dat",
            "MovieLens ratings.dat and movies.dat, fields parted by '::'",
            ("ratings.dat", "ratings.dat.gz"),
            Table("csv", "::", ("userId", "movieId", "rating", "timestamp"), quoted=False),
            {"user": "userId", "item": "movieId", "rating": "rating", "time": "timestamp"},
            item_files=("movies.dat",),
            item_table=Table("csv", "::", ("movieId", "title", "genres"), "latin-1", quoted=False),
            item_columns={"id": "movieId", "title": "title", "categories": "genres"},
        ),
        Format(
            "amazon-2014",
            "Amazon reviews 2014: reviews_*.json.gz (one object a line)",
            ("reviews_*.json.gz", "reviews_*.json"),
            _JSON,
            _REVIEW,
            ("reviewerID", "asin", "overall", "unixReviewTime"),
            item_files=("meta_*.json.gz", "meta_*.json"),
            item_table=_JSON,
            item_columns={"id": "asin", "title": "title", "categories": "categories", "text": "description"},
            text_ids=True,
        ),
        Format(
            "amazon-2014-ratings",
            "Amazon ratings 2014: ratings_*.csv, 'user,item,rating,timestamp' without a header",
            ("ratings_*.csv", "ratings_*.csv.gz"),
            Table("csv", ",", ("user", "item", "rating", "timestamp")),
            {"user": "user", "item": "item", "rating": "rating", "time": "timestamp"},
            item_files=("meta_*.json.gz", "meta_*.json"),
            item_table=_JSON,
            item_columns={"id": "asin", "title": "title", "categories": "categories", "text": "description"},
            text_ids=True,
        ),
        Format(
            "amazon-2018",
            "Amazon reviews 2018: <Category>.json.gz or <Category>_5.json.gz (one object a line)",
            ("*.json.gz", "*.json"),
            _JSON,
            _REVIEW,
            ("reviewerID", "asin", "overall", "unixReviewTime", "verified"),
            ("meta_*.json.gz", "meta_*.json"),
            _JSON,
            {"id": "asin", "title": "title", "categories": "category", "text": "description"},
            True,
        ),
        Format(
            "amazon-2018-ratings",
            "Amazon ratings 2018: <Category>.csv, 'item,user,rating,timestamp' without a header",
            ("*.csv", "*.csv.gz"),
            Table("csv", ",", ("item", "user", "rating", "timestamp")),
            {"user": "user", "item": "item", "rating": "rating", "time": "timestamp"},
            item_files=("meta_*.json.gz", "meta_*.json"),
            item_table=_JSON,
            item_columns={"id": "asin", "title": "title", "categories": "category", "text": "description"},
            text_ids=True,
        ),
        Format(
            "amazon-2023",
            "Amazon reviews 2023: <Category>.jsonl.gz (times in milliseconds)",
            ("*.jsonl.gz", "*.jsonl"),
            _JSON,
            {"user": "user_id", "item": "parent_asin", "rating": "rating", "time": "timestamp"},
            ("user_id", "parent_asin", "rating", "timestamp", "asin"),
            ("meta_*.jsonl.gz", "meta_*.jsonl"),
            _JSON,
            {"id": "parent_asin", "title": "title", "categories": "categories", "text": "description"},
            True,
        ),
        Format(
            "amazon-2023-ratings",
            "Amazon ratings 2023: <Category>.csv, 'user_id,parent_asin,rating,timestamp' with a header",
            ("*.csv", "*.csv.gz"),
            Table("csv", ","),
            {"user": "user_id", "item": "parent_asin", "rating": "rating", "time": "timestamp"},
            ("user_id", "parent_asin", "rating", "timestamp"),
            ("meta_*.jsonl.gz", "meta_*.jsonl"),
            _JSON,
            {"id": "parent_asin", "title": "title", "categories": "categories", "text": "description"},
            True,
        ),
        Format(
            "steam",
            "Steam reviews: steam_reviews.json.gz (one Python dict a line) and steam_games.json.gz",
            ("steam_reviews.json*", "steam_new.json*"),
            _JSON,
            {"user": "username", "item": "product_id", "time": "date"},
            ("username", "product_id", "date"),
            item_files=("steam_games.json*",),
            item_table=_JSON,
            item_columns={"id": "id", "title": "title", "categories": "genres"},
            text_ids=True,
        ),
        Format(
            "yelp",
            "Yelp open data set: yelp_academic_dataset_review.json",
            ("yelp_academic_dataset_review.json*",),
            _JSON,
            {"user": "user_id", "item": "business_id", "rating": "stars", "time": "date"},
            ("review_id", "user_id", "business_id", "stars", "date"),
            ("yelp_academic_dataset_business.json*",),
            _JSON,
            {"id": "business_id", "title": "name", "categories": "categories"},
            True,
        ),
        Format(
            "recbole",
            "RecBole atomic files: <name>.inter and <name>.item",
            ("*.inter",),
            _ATOMIC,
            {"user": "user_id", "item": "item_id", "rating": "rating", "time": "timestamp"},
            item_files=("*.item",),
            item_table=_ATOMIC,
            item_columns={"id": "item_id"},  # the others by their usual names
            optional=("rating", "time"),
        ),
    )
}
