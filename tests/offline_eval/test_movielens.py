"""MovieLens's own files, on small ones of their form."""

import json
from pathlib import Path

import pytest

from esr_trainer.command_line import UsageError, main
from offline_eval.__main__ import OfflineEval
from offline_eval.procedures.labelled_worlds import LabelledWorld
from offline_eval.procedures.ma2020 import feedback_of, run_one
from offline_eval.procedures.movielens import CUT, movielens, source_of


def likes(user: int, movie: int) -> bool:
    """Even users like even movies, which are comedies, odd users the dramas."""
    return user % 2 == movie % 2


def is_rated(user: int, movie: int) -> bool:
    return (user * 7 + movie * 3) % 5 > 1


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 users, 40 movies; three fifths of the pairs are rated, 4 or 5 what is liked and 1 to 3 what is not."""
    folder = tmp_path_factory.mktemp("ml-1m")
    users = [f"{user}::{'FM'[user % 2]}::25::{user % 3}::0{user % 7}" for user in range(1, 51)]
    genres = ["Comedy|Romance", "Drama"]
    movies = [f"{movie}::Caf\xe9 {movie}: a story (1995)::{genres[movie % 2]}" for movie in range(1, 41)]
    pairs = [(user, movie) for user in range(1, 51) for movie in range(1, 41) if is_rated(user, movie)]
    ratings = [
        f"{user}::{movie}::{4 + user % 2 if likes(user, movie) else 1 + movie % 3}::978300760" for user, movie in pairs
    ]
    for name, lines in (("users.dat", users), ("movies.dat", movies), ("ratings.dat", ratings)):
        (folder / name).write_text("\n".join(lines) + "\n", encoding="latin-1")
    return folder


@pytest.fixture(scope="module")
def labelled(files: Path) -> LabelledWorld:
    return movielens(files)


def test_a_rating_above_3_is_a_label_of_1_and_any_other_of_0(labelled: LabelledWorld) -> None:
    labels = labelled.world.expected_reward
    assert labels.shape == (50, 40)
    rated = [(user, movie) for user in range(1, 51) for movie in range(1, 41) if is_rated(user, movie)]
    assert all(labels[user - 1, movie - 1] == likes(user, movie) for user, movie in rated)


def test_missing_labels_are_what_the_features_tell(labelled: LabelledWorld) -> None:
    missing = [(user, movie) for user in range(1, 51) for movie in range(1, 41) if not is_rated(user, movie)]
    found = [
        float(labelled.world.expected_reward[user - 1, movie - 1]) == likes(user, movie) for user, movie in missing
    ]
    assert sum(found) / len(missing) > 0.95, f"by a simulated chance of {CUT}"


def test_features_are_those_of_the_files(labelled: LabelledWorld) -> None:
    assert list(labelled.contexts.bags) == ["id", "Gender", "Age", "Occupation", "Zip-code"]
    assert list(labelled.items.bags) == ["id", "Title", "Genres"]
    assert labelled.items.vocabularies["Genres"] == ("Comedy", "Drama", "Romance")
    assert labelled.items.bags["Genres"][1].tolist() == [0, 2], "movie 2 is Comedy|Romance"
    assert labelled.contexts.bags["Gender"][:2, 0].tolist() == [1, 0], "user 1 is M of F, M"
    assert set(labelled.items.vocabularies["Title"].indices(["Café"])) <= set(labelled.items.bags["Title"][0]), (
        "latin-1"
    )


def test_an_esr_and_a_ranker_learn_from_bandit_feedback_on_it(labelled: LabelledWorld) -> None:
    feedback = feedback_of(labelled, 0)
    measures = run_one(feedback, "two-stage-ips", 0, 10, 0.03).measures
    assert measures["two-stage precision@5"] > 0.55, "half of what is there is liked"


@pytest.mark.slow
def test_the_procedure_runs_on_it_as_a_command(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--world", "movielens", "--data", str(files), "--results", str(tmp_path), "--budget", "smoke", "--json"]
    assert main(OfflineEval, "python -m offline_eval", ["ma2020", *options]) == 0
    policies = json.loads(capsys.readouterr().out.splitlines()[-1])["policies"]
    assert policies["ranker alone"]["two-stage precision@5"]["mean"] > 0.55


def test_the_world_is_known_by_its_files(labelled: LabelledWorld, files: Path, tmp_path: Path) -> None:
    assert labelled.world.source == source_of(files)
    for file in files.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert source_of(tmp_path) == labelled.world.source
    lines = (tmp_path / "ratings.dat").read_text().splitlines()
    (tmp_path / "ratings.dat").write_text("\n".join(lines[:-1]))
    assert source_of(tmp_path) != labelled.world.source


@pytest.mark.parametrize(
    ("name", "line", "complaint"),
    [
        ("ratings.dat", "1::1::5", "1::1::5 is not UserID::MovieID::Rating::Timestamp"),
        ("ratings.dat", "1::99::5::0", "1::99::5::0 is no rating from 1 to 5 by a user of users.dat of a movie of"),
        ("ratings.dat", "1::1::6::0", "1::1::6::0 is no rating from 1 to 5"),
        ("users.dat", "1::M::1::1::1", "data: 1 has two lines"),
        ("movies.dat", None, "has no movies.dat: name the folder of ratings.dat, users.dat and movies.dat"),
    ],
)
def test_files_of_another_form_are_refused_in_one_line(
    files: Path, tmp_path: Path, name: str, line: str | None, complaint: str
) -> None:
    for file in files.iterdir():
        content = file.read_bytes()
        if file.name != name:
            (tmp_path / file.name).write_bytes(content)
        elif line is not None:
            (tmp_path / name).write_bytes(content + line.encode())
    with pytest.raises(UsageError, match="data") as refused:
        movielens(tmp_path)
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)
