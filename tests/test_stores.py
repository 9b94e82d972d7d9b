"""What is printed and stored of a user's names and addresses: keys that no two names share, and no password."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest
from mlflow.utils.validation import _validate_metric_name
from spoiled import WAYS, spoil

from pipeline import stores

ODD = [
    "IMG (3).jpg", "IMG _3_.jpg", "Höhe 1.jpg", "a,b.jpg", "a;b.jpg", "a_b.jpg", "anna's", 'anna"s', "x" * 245,
    "x" * 244 + "y", "\udc80.jpg", "\udc81.jpg", "", ".", "..", "/", "/a", "a/", "a//b", "a/../b", "./a", " a", "a ",
    "a\n", "a\0", "😀", "e\u0301", "é", "a%41", "a:b", "--", "日本", "layer.conv1", "body/0", "C:\\x", "$(id)", "`id`",
]  # fmt: skip


def test_every_name_becomes_a_key_that_mlflow_allows_and_no_other_name_has() -> None:
    keys = [stores.key(name) for name in ODD]
    assert len(set(keys)) == len(ODD)
    for key in keys:
        _validate_metric_name(key)
        assert set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-. /")
        assert 0 < len(key) <= stores.KEY_LENGTH


@pytest.mark.parametrize("name", ["layer.conv1", "body/0/conv", "validation es_city0.jpg", "a" * 100, "res_1-2"])
def test_a_plain_name_is_its_own_key(name: str) -> None:
    assert stores.key(name) == name


def test_a_changed_key_begins_as_the_name_does() -> None:
    assert stores.key("validation IMG (3).jpg").startswith("validation IMG _3_.jpg-")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://u:secret@host/db",
        "postgresql+psycopg://host/db?user=u&password=secret",
        "postgresql://u@host/db?sslpassword=secret",
        "http://u:secret@127.0.0.1:5000",
        "https://:secret@host/path",
        "http://secret@host",
        "mysql+pymysql://u:a@secret@host/db",
        "mysql://u:a/secret@host/db",
        "mysql://u:a%40secret@host/db",
        "mysql://u:a b'secret@host/db",
        "mysql://u:a:secret@host:port/db",
        "postgresql//u:secret@host/none",
        "host=h password=secret dbname=x",
    ],
)
def test_no_password_is_printed(url: str) -> None:
    for text in (url, f"the store {url} can't be reached", f"connection to {url!s}, tried 3 times"):
        assert "secret" not in stores.masked(text, url)
    assert "secret" not in stores.masked("password authentication of 'secret' failed", url) or "?" not in url


def test_a_password_is_found_in_what_the_driver_says_as_written_and_decoded() -> None:
    url = "postgresql://u:p%40ss%2Fword@host/db"
    assert stores.masked("bad: p@ss/word, p%40ss%2Fword", url) == "bad: ***, ***"


def test_a_piece_of_a_password_that_was_taken_for_the_host_is_masked() -> None:
    assert stores.masked("no host 'ss'", "postgresql://u:p@ss/word@host/db") == "no host '***'"


def test_the_environments_password_and_token_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abc.def")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hush")
    assert stores.masked("Bearer abc.def refused, u/hush") == "Bearer *** refused, u/***"


@pytest.mark.parametrize("text", ["sqlite:////home/a@b/mlflow.db is locked", "write to me@host", "lr=1e-4, a 1@2"])
def test_what_holds_no_password_stays(text: str) -> None:
    assert stores.masked(text) == text


@pytest.mark.parametrize("word", ["x" * 20_000, 10_000 * "a.", 2_500 * "password", "x" * 20_000 + "://u:secret@h"])
def test_a_long_word_is_masked_at_once(word: str) -> None:
    began = time.monotonic()
    assert "secret" not in stores.masked(word)
    assert time.monotonic() - began < 2  # 7 s, or minutes, where each of its characters may begin an address


def test_a_text_is_stored_without_what_stores_refuse() -> None:
    assert stores.text("a\udc80\0b😀\n", 100) == "a\\udc80\\0b😀\n"
    assert len(stores.text("x" * 9000, 5000)) == 5000


@pytest.mark.parametrize(("how", "sentence"), WAYS.items())
def test_a_spoiled_file_is_said_at_once(
    how: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "LOCKED_SECONDS", 0.3)
    path = tmp_path / "a b.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE t (x INTEGER)")
    database.close()
    stores.probe(f"sqlite:///{path}")
    held = spoil(path, how)
    began = time.monotonic()
    with pytest.raises(stores.UnusableError, match=sentence):
        stores.probe(f"sqlite:///{path}")
    assert time.monotonic() - began < 3
    if held:
        held.close()


def test_a_link_that_leads_to_no_place_for_a_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.symlink_to(path.name)
    with pytest.raises(stores.UnusableError, match="Too many levels of symbolic links"):
        stores.probe(f"sqlite:///{path}", absent=True)
    path.unlink()
    path.symlink_to("nothing/here.db")
    with pytest.raises(stores.UnusableError, match="nothing isn't there"):
        stores.probe(f"sqlite:///{path}", absent=True)
    (tmp_path / "nothing").mkdir()
    stores.probe(f"sqlite:///{path}", absent=True)


def test_an_unreachable_server_is_said_without_its_password() -> None:
    with pytest.raises(stores.UnusableError) as caught:
        stores.probe("postgresql+psycopg://u:secret@127.0.0.1:1/none")
    assert "refused" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_password_in_an_address_without_its_kind_is_masked() -> None:
    assert stores.masked("u:SECRET@host/db is no store") == "u:***@host/db is no store"
    assert stores.masked("dvc repro -s -f train@edsr makes it anew: retry@noon") == (
        "dvc repro -s -f train@edsr makes it anew: retry@noon"
    )
