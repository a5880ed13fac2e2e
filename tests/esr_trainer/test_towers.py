from pathlib import Path

import pytest
import torch

from esr_trainer.command_line import UsageError
from esr_trainer.features import id_features, load_features, read_features, save_features
from esr_trainer.hashed_text import HashedText
from esr_trainer.towers import EarlyStageRanker


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_features_of_a_csv(tmp_path: Path) -> None:
    path = write(tmp_path / "items.csv", 'video_id,feat,kind\n3,"[27, 9]",red\n1,[8],blue\n9,[1],green\n')
    features = read_features(("1", "2", "3"), path)
    assert features.vocabularies == {"id": ("1", "2", "3"), "feat": ("27", "8", "9"), "kind": ("blue", "red")}
    assert features.bags["feat"].tolist() == [[1, -1], [-1, -1], [0, 2]]
    assert features.bags["kind"].tolist() == [[0], [-1], [1]]
    save_features(features, tmp_path, "item")
    loaded = load_features(tmp_path, "item")
    assert loaded.vocabularies == features.vocabularies
    assert all((loaded.bags[name] == features.bags[name]).all() for name in features.bags)


def test_a_column_of_many_values_is_left_out_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = tuple(map(str, range(600)))
    path = write(tmp_path / "users.csv", "user_id,age,kind\n" + "".join(f"{i},{i},{i % 2}\n" for i in range(600)))
    assert list(read_features(ids, path).bags) == ["id", "kind"]
    assert "feature age of users.csv left out: 600 distinct values (at most 500)" in capsys.readouterr().err


def test_a_column_of_many_texts_is_text_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = tuple(map(str, range(600)))
    path = write(tmp_path / "items.csv", "item,caption\n" + "".join(f"{i},cap {i}\n" for i in range(600)))
    features = read_features(ids, path, read_text=lambda texts: HashedText(buckets=50))
    assert features.vocabularies["caption"] == HashedText(buckets=50)
    assert features.bags["caption"].max() < 50
    said = "feature caption of items.csv read as text: 600 distinct values (categories have at most 500)"
    assert said in capsys.readouterr().err
    save_features(features, tmp_path, "item")
    assert load_features(tmp_path, "item").vocabularies == features.vocabularies


def test_a_named_column_is_text_however_few_its_values(tmp_path: Path) -> None:
    path = write(tmp_path / "items.csv", "item,kind,tag\n1,red,blue sky\n2,,\n")
    features = read_features(("1", "2"), path, text=("tag",))
    assert features.vocabularies["kind"] == ("red",)
    assert features.bags["tag"][0].tolist() == HashedText().indices(["blue sky"])
    assert (features.bags["tag"][1] == -1).all()


def test_a_bucket_that_no_row_has_says_nothing(tmp_path: Path) -> None:
    items = read_features(("1", "2"), write(tmp_path / "items.csv", "item,tag\n1,cat\n2,dog\n"), text=("tag",))
    policy = EarlyStageRanker(id_features(("x",)), items, 1, 3)
    policy.initialise(1.0, torch.Generator().manual_seed(0))
    used = policy.item_tower.weights()["tag"].abs().sum(dim=1).nonzero().flatten()
    assert used.tolist() == sorted(set(items.bags["tag"].flatten().tolist()))


@pytest.mark.parametrize("text", ["user_id,x\n1,a\n1,b\n", "user_id,x\n7,a\n", ""])
def test_unusable_features_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="features"):
        read_features(("1", "2"), write(tmp_path / "users.csv", text))


def test_a_column_may_have_any_name_but_the_reserved(tmp_path: Path) -> None:
    features = read_features(("1", "2"), write(tmp_path / "users.csv", "user,type,a.b,keys\n1,x,y,z\n2,v,w,u\n"))
    assert EarlyStageRanker(features, features, 1, 2)(torch.tensor([0, 1])).shape == (2, 1, 2)
    save_features(features, tmp_path, "context")
    assert load_features(tmp_path, "context").vocabularies == features.vocabularies
    for name in ("id", "file", "allow_pickle"):
        with pytest.raises(UsageError, match=f"no column after the first may be called {name}"):
            read_features(("1",), write(tmp_path / "users.csv", f"user,{name}\n1,x\n"))


def test_a_tower_sums_the_features_means(tmp_path: Path) -> None:
    path = write(tmp_path / "items.csv", 'id_column,feat\n3,"[27, 9]"\n1,[8]\n')
    policy = EarlyStageRanker(id_features(("x",)), read_features(("1", "2", "3"), path), num_experts=2, dimension=3)
    policy.initialise(1.0, torch.Generator().manual_seed(0))
    tables = policy.item_tower.weights()
    ids, feat = tables["id"].view(3, 2, 3), tables["feat"].view(3, 2, 3)  # values 27, 8, 9
    expected = torch.stack([ids[0] + feat[1], ids[1], ids[2] + (feat[0] + feat[2]) / 2])
    torch.testing.assert_close(policy.item_tower(torch.arange(3)), expected)


def test_logits_are_inner_products_over_temperature() -> None:
    policy = EarlyStageRanker(id_features(("x", "y")), id_features(("a", "b", "c")), 2, 4, temperature=0.5)
    policy.initialise(1.0, torch.Generator().manual_seed(0))
    user = policy.context_tower(torch.tensor([1, 0, 1]))
    item = policy.item_tower(torch.arange(3))
    torch.testing.assert_close(policy(torch.tensor([1, 0, 1])), torch.einsum("bmd,nmd->bmn", user, item) / 0.5)


def test_initial_tables_have_the_asked_deviation() -> None:
    policy = EarlyStageRanker(id_features(tuple(map(str, range(5000)))), id_features(("a", "b")), 2, 4)
    policy.initialise(0.1, torch.Generator().manual_seed(0))
    assert float(policy.context_tower.weights()["id"].detach().std()) == pytest.approx(0.1, rel=0.02)
