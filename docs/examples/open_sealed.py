"""Opens a model file that is encrypted in a store, with nothing of ours: HPKE (MLKEM768-X25519, HKDF-SHA256,
AES-256-GCM) by the `cryptography` package, and STREAM on top of it. See docs/security.md, "Encrypted artefacts".

    python3 open_sealed.py artefact.key MODEL VERSION PATH < sealed > plain
"""

import base64
import hashlib
import sys

from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAGIC, CHUNK, TAG, ENC = b"nf-sealed/1\n", 1 << 20, 16, 1120
SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


def inside(pem):
    return base64.b64decode("".join(line for line in pem.split("\n") if not line.startswith("-----")))


def private(pem):
    """The key that reads, and what names it in a file."""
    bytes = inside(pem)
    ml, x = mlkem.MLKEM768PrivateKey.from_seed_bytes(bytes[:64]), x25519.X25519PrivateKey.from_private_bytes(bytes[64:])
    raw = ml.public_key().public_bytes_raw() + x.public_key().public_bytes_raw()
    return hpke.MLKEM768X25519PrivateKey(ml, x), hashlib.sha256(raw).digest()


def public(pem):
    bytes = inside(pem)
    ml, x = mlkem.MLKEM768PublicKey.from_public_bytes(bytes[:1184]), x25519.X25519PublicKey.from_public_bytes(bytes[1184:])
    return hpke.MLKEM768X25519PublicKey(ml, x), hashlib.sha256(bytes).digest()


def info(key_id, model, version, path):
    return MAGIC + key_id + f"{model}\n{version}\n{path}".encode()


def nonce(number, last):
    return number.to_bytes(11, "big") + bytes([last])


def opened(sealed, key, key_id, model, version, path):
    """The plain bytes, chunk by chunk; raises when a chunk is missing, moved, changed or of another file."""
    head = sealed.read(len(MAGIC) + 32)
    assert head == MAGIC + key_id, "is not encrypted to this key"
    file_key = SUITE.decrypt(sealed.read(ENC + 32 + TAG), key, info(key_id, model, version, path))
    chunks, number, ahead = AESGCM(file_key), 0, sealed.read(CHUNK + TAG)
    while True:
        here, ahead = ahead, sealed.read(CHUNK + TAG)
        yield chunks.decrypt(nonce(number, not ahead), here, None)
        if not ahead:
            return
        number += 1


if __name__ == "__main__":
    with open(sys.argv[1], encoding="ascii") as file:
        KEY = private(file.read())
    for part in opened(sys.stdin.buffer, *KEY, *sys.argv[2:5]):
        sys.stdout.buffer.write(part)
