"""API keys, session tokens, resource principals: files, variables, and what is wrong with them."""

from __future__ import annotations

import base64
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from bootstream.clouds.oci import Credentials, files, open_principal
from bootstream.clouds.oci.files import FileCredentials
from bootstream.clouds.oci.keyed import ApiKeyPrincipal
from bootstream.clouds.oci.keys import fingerprint, read_file
from bootstream.clouds.oci.profile import load_profile
from bootstream.clouds.oci.tokens import parse_token
from bootstream.errors import BootstreamError, PermissionDenied

KEY = rsa.generate_private_key(65537, 2048)
OTHER = rsa.generate_private_key(65537, 2048)
PHRASE = "correct horse"
TENANCY = "ocid1.tenancy.oc1..t"
USER = "ocid1.user.oc1..u"


def pem(
    key: Any = KEY,
    *,
    phrase: str | None = None,
    form: PrivateFormat = PrivateFormat.PKCS8,
) -> str:
    """A key as a file holds it."""
    encryption: KeySerializationEncryption = (
        BestAvailableEncryption(phrase.encode()) if phrase else NoEncryption()
    )
    return str(key.private_bytes(Encoding.PEM, form, encryption).decode())


def b64url(data: bytes) -> str:
    """Base64 as JWTs have it."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def token(key: rsa.RSAPrivateKey | None = None, *, ends_in: float = 600, **claims: Any) -> str:
    """A session token, for a key where one is given."""
    if key is not None:
        modulus = key.public_key().public_numbers().n
        claims["jwk"] = json.dumps({"kty": "RSA", "n": b64url(modulus.to_bytes(256, "big"))})
    body = json.dumps({"exp": time.time() + ends_in, **claims}).encode()
    return f"e30.{b64url(body)}.{b64url(b'secret-signature')}"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder with a key, and with a DEFAULT profile and others that inherit from it."""
    folder = tmp_path / ".oci"
    folder.mkdir()
    for name, text in (
        ("key.pem", pem() + "OCI_API_KEY\n"),
        ("pkcs8.pem", pem(phrase=PHRASE)),
        ("old.pem", pem(phrase=PHRASE, form=PrivateFormat.TraditionalOpenSSL)),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    (folder / "config").write_text(
        f"""\
# a comment
[DEFAULT]
user={USER}
fingerprint={fingerprint(KEY)}
key_file=~/.oci/key.pem
tenancy={TENANCY}
region=iad
pass_phrase={PHRASE}

[pkcs8]
key_file = {folder}/pkcs8.pem
region = eu-frankfurt-1
[old]
key_file=~/.oci/old.pem
[wrong]
key_file=~/.oci/pkcs8.pem
pass_phrase=secret-but-wrong
[no-phrase]
key_file=~/.oci/pkcs8.pem
pass_phrase=
[missing]
key_file=~/.oci/nothing.pem
[folder]
key_file=~/.oci
[session]
security_token_file=~/.oci/token
"""
    )
    return tmp_path


def opened(home: Path, profile: str | None = None, **environ: str) -> Any:
    """What the configuration file of a home folder opens."""
    return open_principal(
        auth=environ.pop("auth", None),
        profile=profile,
        environ={"HOME": str(home), **environ},
        metadata_base_url="http://127.0.0.1:9",
    )


@pytest.mark.parametrize(
    ("profile", "region"),
    [(None, "us-ashburn-1"), ("pkcs8", "eu-frankfurt-1"), ("old", "us-ashburn-1")],
)
def test_api_keys(home: Path, profile: str | None, region: str) -> None:
    """Plain keys with text behind them, encrypted ones old and new, values from DEFAULT."""
    principal = opened(home, profile)
    credentials = principal.credentials()
    assert principal.name == "api_key"
    assert (principal.tenancy, principal.region) == (TENANCY, region)
    assert credentials.key_id == f"{TENANCY}/{USER}/{fingerprint(KEY)}"
    assert credentials.private_key.private_numbers() == KEY.private_numbers()
    assert principal.refresh(credentials) is credentials
    assert PHRASE not in f"{principal!r} {vars(principal)!r}"


@pytest.mark.parametrize(
    ("profile", "message", "remedy"),
    [
        ("wrong", "pass phrase does not open", "OCI_CLI_PASSPHRASE"),
        ("no-phrase", "encrypted", "pass_phrase"),
        ("missing", "does not exist", "correct the path"),
        ("folder", "cannot be read", "readable file"),
        ("unknown", "no profile 'unknown'; the file has: DEFAULT, folder", "OCI_CLI_PROFILE"),
        ("session", "does not exist", "path"),
    ],
)
def test_what_can_be_wrong_with_a_profile(
    home: Path, profile: str, message: str, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each mistake has an error that names it and what mends it, and shows no secret."""
    with caplog.at_level(logging.DEBUG), pytest.raises(PermissionDenied, match=message) as caught:
        opened(home, profile)
    assert remedy in str(caught.value.remedy)
    text = f"{caught.value!r} {caught.value} {caught.value.remedy} {caplog.text}"
    assert "secret" not in text
    assert PHRASE not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user=secret\n", "line 1 comes before"),
        ("[DEFAULT]\nuser=a\nsecret\n", "not `name=value`: line 3"),
        ("[DEFAULT]\nuser=secret\nuser=secret\n", "line 3 repeats"),
        ("[A]\n[A]\n", "line 2 repeats"),
        ("[DEFAULT]\n", "tenancy, user, fingerprint are missing"),
        ("[DEFAULT]\nuser=b\ntenancy=a\nfingerprint=c\n", "key_file is missing"),
        ('[DEFAULT]\nuser=b"\ntenancy=a\nfingerprint=c\n', "user is not written as one"),
        ("[DEFAULT]\nuser=\xff", "not UTF-8"),
    ],
)
def test_what_can_be_wrong_with_the_file(home: Path, content: str, message: str) -> None:
    """The line is named, its content is not shown: it may be a pass phrase."""
    (home / ".oci" / "config").write_bytes(content.encode("latin-1"))
    with pytest.raises(PermissionDenied, match=message) as caught:
        opened(home, "DEFAULT")
    assert "secret" not in f"{caught.value} {caught.value.remedy}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("secret nonsense", "not a private key"),
        ("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----", "not a private key"),
        (
            KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
            "public key",
        ),
        (pem(ec.generate_private_key(ec.SECP256R1())), "not an RSA key"),
        (pem(rsa.generate_private_key(65537, 1024)), "1024 bits"),
    ],
)
def test_what_can_be_wrong_with_a_key(home: Path, text: str, message: str) -> None:
    """Keys that cannot sign are told apart."""
    with pytest.raises(PermissionDenied, match=message) as caught:
        opened(home, "DEFAULT", OCI_CLI_KEY_CONTENT=text)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None, "the library's message may quote the key"


def test_variables_win_over_the_file(home: Path) -> None:
    """Every OCI_CLI_* name; a key's content, with its newlines escaped, wins over the file."""
    principal = opened(
        home,
        "pkcs8",
        OCI_CLI_USER="ocid1.user.oc1..v",
        OCI_CLI_TENANCY="ocid1.tenancy.oc1..w",
        OCI_CLI_FINGERPRINT=fingerprint(OTHER),
        OCI_CLI_REGION="phx",
        OCI_CLI_KEY_CONTENT=pem(OTHER).replace("\n", "\\n"),
    )
    credentials = principal.credentials()
    expected = f"ocid1.tenancy.oc1..w/ocid1.user.oc1..v/{fingerprint(OTHER)}"
    assert credentials.key_id == expected
    assert principal.region == "us-phoenix-1"
    assert credentials.private_key.private_numbers() == OTHER.private_numbers()
    assert opened(home, OCI_CLI_PROFILE="pkcs8").region == "eu-frankfurt-1"
    assert opened(home, "wrong", OCI_CLI_PASSPHRASE=PHRASE).credentials()


def test_variables_alone_are_enough(tmp_path: Path) -> None:
    """No file is needed where the variables say everything."""
    key = tmp_path / "k.pem"
    key.write_text(pem(phrase=PHRASE))
    principal = opened(
        tmp_path,
        OCI_CLI_USER=USER,
        OCI_CLI_TENANCY=TENANCY,
        OCI_CLI_FINGERPRINT=fingerprint(KEY),
        OCI_CLI_KEY_FILE="~/k.pem",
        OCI_CLI_PASSPHRASE=PHRASE,
    )
    assert principal.credentials().key_id.startswith(TENANCY)
    assert principal.region is None


def test_key_content_in_the_file(home: Path) -> None:
    """A key may stand in the profile, on indented lines; a nearer key_file wins over it."""
    config = home / ".oci" / "config"
    text = pem(OTHER).strip().replace("\n", "\n  ")
    config.write_text(
        config.read_text().replace("key_file=~/.oci/key.pem", f"key_content={text}", 1)
    )
    assert opened(home).credentials().private_key.private_numbers() == OTHER.private_numbers()
    assert (
        opened(home, "pkcs8").credentials().private_key.private_numbers() == KEY.private_numbers()
    )


def test_which_file_is_read(home: Path) -> None:
    """OCI_CONFIG_FILE is used only where ~/.oci/config is missing, OCI_CLI_CONFIG_FILE always."""
    usual = home / ".oci" / "config"
    other = home / "other"
    other.write_text(usual.read_text().replace("region=iad", "region=phx"))
    assert opened(home, OCI_CONFIG_FILE="~/other").region == "us-ashburn-1"
    assert opened(home, OCI_CLI_CONFIG_FILE=str(other)).region == "us-phoenix-1"
    moved = usual.rename(home / "moved")
    assert opened(home, OCI_CONFIG_FILE="~/other").region == "us-phoenix-1"
    (home / ".oraclebmc").mkdir()
    moved.rename(home / ".oraclebmc" / "config")
    assert opened(home).region == "us-ashburn-1"


def test_keys_others_can_read_are_warned_about(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A key file of mode 644 is used, with a warning."""
    (home / ".oci" / "key.pem").chmod(0o644)
    opened(home)
    assert "chmod 600" in caplog.text


def test_a_fingerprint_of_another_key_is_warned_about(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The usual mistake after rotating a key is told before the first 401, without secrets."""
    opened(home, OCI_CLI_FINGERPRINT=fingerprint(OTHER))
    assert "expect 401" in caplog.text
    assert PHRASE not in caplog.text


def test_files_this_user_may_not_read(home: Path) -> None:
    """The error says so, and how to change it."""
    key = home / ".oci" / "key.pem"
    key.chmod(0)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from bootstream.clouds.oci.keys import read_file\n"
        "from bootstream.errors import PermissionDenied\n"
        "import os\n"
        "if os.getuid() == 0:\n"
        "    os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try:\n"
        "    read_file(Path(sys.argv[1]), 'key file')\n"
        "except PermissionDenied as error:\n"
        "    print(error, error.remedy)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(key)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert "may not read" in done.stdout
    assert "chmod 600" in done.stdout


def write_session(home: Path, key: rsa.RSAPrivateKey, text: str) -> None:
    """Replace token and key, each at once, as the CLI does."""
    folder = home / ".oci"
    for name, content in (("key.pem", pem(key)), ("token", text)):
        (folder / "new").write_text(content)
        (folder / "new").chmod(0o600)
        (folder / "new").rename(folder / name)


def test_session_tokens_are_read_again(home: Path) -> None:
    """A profile with a token file is a session; ``oci session refresh`` is noticed."""
    write_session(home, KEY, token(KEY, tenant="ocid1.tenancy.oc1..x") + "\n")
    principal = opened(home, "session")
    first = principal.credentials()
    assert principal.name == "security_token"
    assert first.key_id.startswith("ST$e30.")
    assert not first.key_id.endswith("\n")
    assert principal.refresh(first) is first
    write_session(home, OTHER, token(OTHER))
    second = principal.refresh(first)
    assert second is not first
    assert second.private_key.private_numbers() == OTHER.private_numbers()
    assert principal.credentials() is second


def test_a_session_that_is_over(home: Path) -> None:
    """The error names the command that starts another, and another is picked up."""
    write_session(home, KEY, token(KEY, ends_in=-5))
    with pytest.raises(PermissionDenied, match="expired 5 seconds ago") as caught:
        opened(home, "session").credentials()
    assert "oci session" in str(caught.value.remedy)


def test_token_and_key_of_two_sessions(home: Path) -> None:
    """A pair that does not fit is refused when opened, and never replaces one that does."""
    write_session(home, OTHER, token(KEY))
    with pytest.raises(PermissionDenied, match="another key"):
        opened(home, "session")
    write_session(home, KEY, token(KEY))
    principal = opened(home, "session")
    first = principal.credentials()
    write_session(home, OTHER, token(KEY))
    assert principal.refresh(first) is first
    write_session(home, OTHER, token(OTHER))
    assert principal.refresh(first) is not first


def test_pairs_stay_pairs_while_files_are_replaced(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers that look all the time never get the token of one session and the key of another."""
    monkeypatch.setattr(files, "_EVERY", 0.0)
    write_session(home, KEY, token(KEY))
    principal = opened(home, "session")
    stop = threading.Event()
    wrong: list[str] = []
    seen: set[str] = set()

    def read() -> None:
        while not stop.is_set():
            credentials = principal.credentials()
            seen.add(credentials.key_id)
            if not parse_token(credentials.key_id).fits(credentials.private_key):
                wrong.append(credentials.key_id)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for number in range(6):
        key = OTHER if number % 2 == 0 else KEY
        text = token(key, number=number)
        write_session(home, key, text)
        end = time.monotonic() + 5
        while f"ST${text}" not in seen and time.monotonic() < end:
            stop.wait(0.001)
    stop.set()
    for reader in readers:
        reader.join()
    assert not wrong
    assert len(seen) == 7


def test_named_kinds_need_their_values(home: Path) -> None:
    """OCI_CLI_AUTH decides, whatever the profile has."""
    write_session(home, KEY, token(KEY))
    assert opened(home, "session", auth="api_key").name == "api_key"
    assert opened(home, "session", OCI_CLI_AUTH="security_token").name == "security_token"
    with pytest.raises(PermissionDenied, match="security_token_file is missing"):
        opened(home, auth="security_token")
    with pytest.raises(PermissionDenied, match="KUBERNETES_SERVICE_HOST"):
        opened(home, auth="oke_workload_identity")
    with pytest.raises(PermissionDenied, match="VERSION is none"):
        opened(home, auth="resource_principal")


class Files:
    """Credentials in a file that a test replaces, by a clock that it sets."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = time.time()
        self.loads = 0
        path.write_text(token())
        self.source = FileCredentials(
            self.load, [path], name="test", remedy="again", clock=lambda: self.now
        )

    def load(self) -> Credentials:
        self.loads += 1
        parsed = parse_token(read_file(self.path, "token file"))
        return Credentials(parsed.key_id, KEY, parsed.expires)


def test_changes_are_noticed_within_a_second(tmp_path: Path) -> None:
    """Nothing is read while nothing changes; what changed is there one second later."""
    world = Files(tmp_path / "t")
    first = world.source.credentials()
    for _ in range(5):
        world.now += 2
        assert world.source.credentials() is first
    assert world.loads == 1
    world.path.write_text(token(n="other"))
    world.now += 1.1
    second = world.source.credentials()
    assert second is not first
    world.path.unlink()
    world.now += 1.1
    assert world.source.credentials() is second


def resource(tmp_path: Path, **changes: str) -> dict[str, str]:
    """The environment of a resource principal, with its values inline."""
    return {
        "HOME": str(tmp_path),
        "OCI_RESOURCE_PRINCIPAL_VERSION": "2.2",
        "OCI_RESOURCE_PRINCIPAL_RPST": token(KEY, res_tenant=TENANCY),
        "OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM": pem(),
        "OCI_RESOURCE_PRINCIPAL_REGION": "iad",
        **changes,
    }


def test_resource_principal_inline(tmp_path: Path) -> None:
    """It comes before all others when it is there."""
    principal = open_principal(environ=resource(tmp_path))
    assert principal.name == "resource_principal"
    assert (principal.tenancy, principal.region) == (TENANCY, "us-ashburn-1")
    credentials = principal.credentials()
    assert credentials.key_id.startswith("ST$e30.")
    assert principal.refresh(credentials) is credentials


def test_resource_principal_in_files(tmp_path: Path) -> None:
    """Absolute paths are read again when the files change; the key may be encrypted."""
    for name, text in (
        ("rpst", token(KEY)),
        ("key.pem", pem(phrase=PHRASE)),
        ("phrase", PHRASE + "\n"),
    ):
        (tmp_path / name).write_text(text)
    principal = open_principal(
        environ=resource(
            tmp_path,
            OCI_RESOURCE_PRINCIPAL_RPST=str(tmp_path / "rpst"),
            OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM=str(tmp_path / "key.pem"),
            OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM_PASSPHRASE=str(tmp_path / "phrase"),
        )
    )
    first = principal.credentials()
    (tmp_path / "rpst").write_text(token(KEY, n="next"))
    assert principal.refresh(first) is not first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"OCI_RESOURCE_PRINCIPAL_VERSION": "1.1"}, "VERSION is 1.1"),
        ({"OCI_RESOURCE_PRINCIPAL_RPST": ""}, "RPST is not set"),
        ({"OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM": ""}, "PRIVATE_PEM is not set"),
        ({"OCI_RESOURCE_PRINCIPAL_RPST": "/nowhere/rpst"}, "does not exist"),
        ({"OCI_RESOURCE_PRINCIPAL_RPST": "secret"}, "not a JWT"),
        ({"OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM": pem(OTHER)}, "another key"),
        ({"OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM": pem(phrase=PHRASE)}, "encrypted"),
    ],
)
def test_what_can_be_wrong_with_a_resource_principal(
    tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    """Each mistake is named."""
    with pytest.raises(PermissionDenied, match=message) as caught:
        open_principal(auth="resource_principal", environ=resource(tmp_path, **changes))
    assert "secret" not in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_file_is_a_profile_or_refused(data: bytes) -> None:
    """No content raises anything but the tree's errors."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config"
        path.write_bytes(data)
        try:
            ApiKeyPrincipal(load_profile(path, None, {"HOME": folder}))
        except BootstreamError as error:
            assert error.remedy  # noqa: PT017 - it need not be raised


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=100)
    | st.text(max_size=100)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: st.dictionaries(st.sampled_from(["exp", "iat", "jwk", "n"]), inner),
    ).map(lambda claims: f"e30.{b64url(json.dumps(claims).encode())}.e30")
)
def test_any_text_is_a_token_or_refused(data: str | bytes) -> None:
    """Whatever stands where a token should, ValueError is all that comes, and shows none of it."""
    try:
        parsed = parse_token(data)
    except ValueError as error:
        assert str(error).startswith("the token")  # noqa: PT017 - it need not be raised
        return
    assert parsed.fits(KEY) in {True, False}
    assert parsed.text not in repr(parsed)
