"""The hub: what is fetched, in which commit, offline, when it is trusted, and under which names."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rawdiff import weights
from rawdiff.errors import HubError, WeightsError
from rawdiff.extras import Extras
from rawdiff.weights import registry, snapshot
from tests.small_hub import Fault, Request, SmallHub, body, status
from tests.small_models import small_folder

pytest_plugins = ["tests.hub_fixtures"]

REPOSITORY = "owner/small"
UNET = "unet/diffusion_pytorch_model.safetensors"
Reach = Callable[..., weights.Hub]


def files_below(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


# What is fetched.


def test_a_lora_brings_the_config_beside_it(
    pristine: Path, served: SmallHub, reach: Reach, tmp_path: Path
) -> None:
    """peft keeps alpha there: without it the LoRA would be merged at another strength."""
    folder = shutil.copytree(pristine, tmp_path / "model")
    (folder / "loras").mkdir()
    layer = "base_model.model.unet.mid_block.attentions.0.proj_in"
    held = {f"{layer}.lora_{letter}.weight": torch.ones(2, 2) for letter in "AB"}
    save_file(held, folder / "loras" / "adapter_model.safetensors")
    (folder / "loras" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 8}')
    table = json.loads((folder / "rawdiff.json").read_text())
    table["loras"] = {"paper": "loras/adapter_model.safetensors"}
    (folder / "rawdiff.json").write_text(json.dumps(table))
    served.add("owner/styled", folder)
    opened = weights.open_source("owner/styled", hub=reach())
    [added] = Extras(opened, weights.read_defaults(opened)).loras(["paper"])
    assert [factors.scale for factors in added.lora.factors] == [4.0]
    assert added.config == hashlib.sha256((folder / "loras" / "adapter_config.json").read_bytes()).hexdigest()


def test_only_what_a_part_needs_is_fetched(served: SmallHub, reach: Reach, lines: list[str]) -> None:
    opened = weights.open_source(REPOSITORY, hub=reach())
    assert (opened.kind, opened.revision) == ("hub", served.refs[REPOSITORY]["main"])
    assert served.files_asked() == []
    weights.load_unet(opened)
    assert served.files_asked() == ["unet/config.json", UNET]
    weights.load_unet(opened)
    assert len(served.files_asked()) == 2
    assert any(line.startswith(f"downloading {UNET} of {REPOSITORY} (") for line in lines)


def test_the_whole_model_arrives(pristine: Path, served: SmallHub, reach: Reach) -> None:
    opened = weights.open_source(REPOSITORY, hub=reach())
    here = weights.open_source(pristine)
    for load in (weights.load_unet, weights.load_vae, weights.load_text_encoder):
        found, expected = load(opened), load(here)
        for a, b in zip(found.parameters(), expected.parameters(), strict=True):
            assert torch.equal(a, b)
    assert (
        weights.load_tokenizer(opened)("a red cube").input_ids
        == weights.load_tokenizer(here)("a red cube").input_ids
    )
    defaults = weights.read_defaults(opened)
    assert defaults.native_size == (64, 64)
    weights.load_controlnet(defaults.controls["depth"])
    assert dict(weights.load_scheduler(opened).config) == dict(weights.load_scheduler(here).config)
    assert weights.hashes(opened, "unet", "tokenizer") == weights.hashes(here, "unet", "tokenizer")
    assert not [name for name in served.files_asked() if "model_index" in name]


def test_a_repository_that_is_one_net(pristine: Path, served: SmallHub, reach: Reach) -> None:
    served.add("owner/net", pristine / "controlnet_depth")
    weights.load_controlnet(weights.open_source("owner/net", hub=reach()))
    served.add("owner/fp16", {**files_below(pristine / "controlnet_depth")})
    files = served.repositories["owner/fp16"][served.refs["owner/fp16"]["main"]]
    files["diffusion_pytorch_model.fp16.safetensors"] = files["diffusion_pytorch_model.safetensors"]
    files["diffusion_pytorch_model.bin"] = b"a pickle that nobody asks for"
    served.requests.clear()
    weights.load_controlnet(weights.open_source("owner/fp16", hub=reach()))
    assert served.files_asked() == ["config.json", "diffusion_pytorch_model.safetensors"]


def test_the_wrong_class_is_refused_before_its_weights_are_fetched(served: SmallHub, reach: Reach) -> None:
    opened = weights.open_source(REPOSITORY, hub=reach()).child("unet")
    with pytest.raises(WeightsError, match="expected ControlNetModel; it is a unet"):
        weights.load_controlnet(opened)
    assert served.files_asked() == ["unet/config.json"]


def test_the_layout_is_the_one_that_others_share(served: SmallHub, reach: Reach, tmp_path: Path) -> None:
    """huggingface_hub finds in its cache what was fetched here, without a request."""
    from huggingface_hub import try_to_load_from_cache

    opened = weights.open_source(REPOSITORY, hub=reach())
    weights.load_vae(opened)
    found = try_to_load_from_cache(REPOSITORY, "vae/config.json", cache_dir=tmp_path / "cache")
    assert Path(str(found)).read_bytes() == (opened.root / "vae/config.json").read_bytes()
    assert (opened.root / "vae/config.json").is_symlink()


# One commit.


def test_a_branch_that_moves_gives_one_commit_to_all_parts(
    pristine: Path, served: SmallHub, reach: Reach, tmp_path: Path
) -> None:
    first = weights.open_source(REPOSITORY, hub=reach())
    other = small_folder(tmp_path / "other", nets=(), seed=5)
    served.add(REPOSITORY, other)
    second = weights.open_source(REPOSITORY, hub=reach())
    assert first.revision == second.revision
    expected = weights.load_unet(pristine)
    assert torch.equal(weights.load_unet(second).conv_in.weight, expected.conv_in.weight)
    snapshot.forget()
    third = weights.open_source(REPOSITORY, hub=reach())
    assert third.revision == served.refs[REPOSITORY]["main"] != first.revision
    assert not torch.equal(weights.load_unet(third).conv_in.weight, expected.conv_in.weight)
    pinned = weights.open_source(REPOSITORY, hub=reach(), revision=first.revision)
    assert torch.equal(weights.load_unet(pinned).conv_in.weight, expected.conv_in.weight)


@pytest.mark.parametrize("revision", ["../../x", "a..b", "", "-x", "a b"])
def test_revisions_stay_inside_the_cache(reach: Reach, revision: str) -> None:
    with pytest.raises(HubError, match="expected a branch, a tag or a commit"):
        weights.open_source(REPOSITORY, hub=reach(), revision=revision)


# Offline.


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def arm() -> None:
        def refuse(*args: Any, **options: Any) -> None:
            raise AssertionError("a socket was opened")

        for name in ("socket.socket", "socket.create_connection", "socket.getaddrinfo"):
            monkeypatch.setattr(name, refuse)

    return arm


def test_offline_opens_no_socket(reach: Reach, no_sockets: Callable[[], None]) -> None:
    online = weights.open_source(REPOSITORY, hub=reach())
    weights.load_unet(online)
    snapshot.forget()
    no_sockets()
    with pytest.raises(AssertionError):
        socket.socket()  # the trap is set
    offline = weights.open_source(REPOSITORY, hub=reach(offline=True))
    assert offline.revision == online.revision
    weights.load_unet(offline)
    with pytest.raises(
        HubError, match=r"in the cache without vae/config.json.*run once without --offline"
    ) as caught:
        weights.load_vae(offline)
    assert caught.value.exit_code == 5
    with pytest.raises(HubError, match=r"not in the cache at .*, and offline no connection is made"):
        weights.open_source("owner/other", hub=reach(offline=True))
    with pytest.raises(HubError, match="not in the cache"):
        weights.open_source(REPOSITORY, hub=reach(offline=True), revision="0" * 40)


def test_the_environment_says_offline_too(
    reach: Reach, no_sockets: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: True)
    no_sockets()
    with pytest.raises(HubError, match="not in the cache"):
        weights.open_source(REPOSITORY, hub=reach())


def test_a_partial_cache_made_by_others(reach: Reach, tmp_path: Path) -> None:
    """Others leave no listing: then what is there is used, and what is not is said to be missing."""
    opened = weights.open_source(REPOSITORY, hub=reach())
    weights.load_vae(opened)
    shutil.rmtree(tmp_path / "cache" / "models--owner--small" / "rawdiff")
    snapshot.forget()
    offline = weights.open_source(REPOSITORY, hub=reach(offline=True))
    weights.load_vae(offline)
    with pytest.raises(HubError, match=r"in the cache without its unet: run once without --offline"):
        weights.load_unet(offline)
    (offline.root / "vae/diffusion_pytorch_model.safetensors").unlink()
    snapshot.forget()
    with pytest.raises(HubError, match="in the cache without weights"):
        weights.load_vae(weights.open_source(REPOSITORY, hub=reach(offline=True)))


def test_an_unreachable_hub_leaves_the_cache_in_use(served: SmallHub, reach: Reach, lines: list[str]) -> None:
    weights.load_vae(weights.open_source(REPOSITORY, hub=reach()))
    snapshot.forget()
    served.listing_faults = [status(503)] * 9
    weights.load_vae(weights.open_source(REPOSITORY, hub=reach()))
    assert any("going on with the cached commit" in line for line in lines)


# Trust.


@pytest.mark.parametrize("name", [UNET, "unet/config.json"])
def test_a_flipped_bit_is_refused_and_nothing_is_kept(
    served: SmallHub, reach: Reach, tmp_path: Path, name: str
) -> None:
    data = bytearray(served.repositories[REPOSITORY][served.refs[REPOSITORY]["main"]][name])
    data[len(data) // 2] ^= 1
    faults: list[Fault] = [body(bytes(data))]
    served.faults = faults if name.endswith("config.json") else [lambda request: False, *faults]
    opened = weights.open_source(REPOSITORY, hub=reach())
    with pytest.raises(HubError, match=f"{name} of {REPOSITORY} came with another checksum"):
        weights.load_unet(opened)
    assert not list((tmp_path / "cache").rglob("*.incomplete"))
    assert not (opened.root / name).exists()
    weights.load_unet(opened)  # the next try is clean


def test_damage_in_the_cache_is_found_once_and_mended(
    served: SmallHub, reach: Reach, lines: list[str]
) -> None:
    opened = weights.open_source(REPOSITORY, hub=reach())
    weights.load_unet(opened)
    blob = (opened.root / UNET).resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    for content in (bytes(data), bytes(data[:-7])):
        blob.write_bytes(content)
        os.utime(blob, ns=(1, 1))
        snapshot.forget()
        with pytest.raises(HubError, match=r"is damaged .* and offline it cannot be fetched again"):
            weights.load_unet(weights.open_source(REPOSITORY, hub=reach(offline=True)))
        snapshot.forget()
        weights.load_unet(weights.open_source(REPOSITORY, hub=reach()))
        assert lines[-2] == f"{UNET} of {REPOSITORY} is damaged in the cache; fetching it again"
        assert hashlib.sha256((opened.root / UNET).read_bytes()).hexdigest() == blob.name


def test_a_file_is_hashed_once(reach: Reach, monkeypatch: pytest.MonkeyPatch) -> None:
    weights.load_unet(weights.open_source(REPOSITORY, hub=reach()))
    snapshot.forget()
    monkeypatch.setattr("rawdiff.weights.hub_cache.RepositoryCache.verify", None)
    again = weights.open_source(REPOSITORY, hub=reach(offline=True))
    weights.load_unet(again)
    monkeypatch.setattr("hashlib.file_digest", None)
    assert UNET in {name for name in again.snapshot.listed if (again.root / name).exists()}  # type: ignore[union-attr]


def test_a_hostile_etag_reaches_no_path(served: SmallHub, reach: Reach, tmp_path: Path) -> None:
    served.etag = '"../../../../../escaped"'
    weights.load_unet(weights.open_source(REPOSITORY, hub=reach()))
    assert not list(tmp_path.parent.rglob("*escaped*"))
    blobs = list((tmp_path / "cache" / "models--owner--small" / "blobs").iterdir())
    assert all(len(blob.name) in (40, 64) for blob in blobs)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rfilename", "../../../escaped"),
        ("rfilename", "/tmp/escaped"),
        ("rfilename", "unet/../../x"),
        ("rfilename", "a\\b"),
        ("rfilename", "a\0b"),
        ("rfilename", ""),
        ("blobId", "../../../../escaped"),
        ("blobId", None),
        ("blobId", "G" * 40),
        ("size", -1),
        ("size", "big"),
    ],
)
def test_a_hostile_listing_is_refused(served: SmallHub, reach: Reach, key: str, value: Any) -> None:
    def twist(reply: dict[str, Any]) -> dict[str, Any]:
        entry = next(entry for entry in reply["siblings"] if "lfs" not in entry)
        entry[key] = value
        return reply

    served.twist = twist
    with pytest.raises(HubError):
        weights.open_source(REPOSITORY, hub=reach())


@pytest.mark.parametrize("sha", [None, "main", "../../../x", "A" * 40, 5])
def test_a_hostile_commit_is_refused(served: SmallHub, reach: Reach, sha: Any) -> None:
    served.twist = lambda reply: {**reply, "sha": sha}
    with pytest.raises(HubError):
        weights.open_source(REPOSITORY, hub=reach())


def test_the_login_stays_at_home(served: SmallHub, reach: Reach) -> None:
    """A file that the hub keeps elsewhere is fetched there without the login."""
    with SmallHub() as elsewhere:
        elsewhere.repositories = served.repositories

        def redirect(request: Request) -> bool:
            request.send(
                302, b"", {"Location": elsewhere.url.replace("127.0.0.1", "localhost") + request.path}
            )
            return True

        served.faults = [redirect] * 2
        weights.load_unet(weights.open_source(REPOSITORY, hub=reach(token="hf_secret")))
        assert all("hf_secret" in headers["authorization"] for _, _, headers in served.requests)
        assert len(elsewhere.requests) == 2
        assert not any("authorization" in headers for _, _, headers in elsewhere.requests)


# Aliases, mirrors, and what is gone.


def test_an_alias_and_its_mirror(served: SmallHub, reach: Reach, lines: list[str], monkeypatch: Any) -> None:
    known = registry.Known("tiny", ("owner/gone", REPOSITORY), "sd1", "model", "mit")
    monkeypatch.setitem(registry.ALIASES, "tiny", known)
    monkeypatch.setitem(registry.GONE, "owner/taken-down", ("tiny", "August 2024"))
    opened = weights.open_source("tiny", hub=reach())
    assert opened.name == REPOSITORY
    assert f"using {REPOSITORY} in place of owner/gone" in lines
    opened = weights.open_source("owner/taken-down", hub=reach())
    assert opened.name == REPOSITORY
    assert "owner/taken-down was taken down in August 2024; using owner/gone" in lines
    served.listing_faults = [status(403, X_Error_Code="GatedRepo")]
    with pytest.raises(HubError, match="gated"):  # a fault of another kind is not hidden by a mirror
        weights.open_source("tiny", hub=reach())


def test_a_mirror_that_is_gone_too(served: SmallHub, reach: Reach, monkeypatch: Any) -> None:
    monkeypatch.setitem(
        registry.ALIASES, "tiny", registry.Known("tiny", ("owner/a", "owner/b"), "sd1", "model", "mit")
    )
    with pytest.raises(HubError, match="has no repository owner/a"):
        weights.open_source("tiny", hub=reach())
