"""Checks an export of the audit trail with nothing of ours: python3 audit_verify.py [--ecdsa-alone] export.jsonl [ca.pem]"""
import base64, datetime, hashlib, json, re, subprocess, sys, tempfile
try:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
except ImportError:  # or one that is too old for ML-DSA
    MLDSA65PublicKey = None


def sha(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def once(pairs):
    assert len({name for name, _ in pairs}) == len(pairs), "a name is there twice"
    return dict(pairs)


def check(lines):
    seq, head, peaks = 0, bytes(32), []  # peaks: roots of full subtrees, widest first
    for line in lines:
        value = json.loads(line, object_pairs_hook=once)
        if "checkpoint" in value:
            root = peaks.pop() if peaks else sha()
            while peaks:
                root = sha(b"\x01", peaks.pop(), root)
            end = value["checkpoint"]
            assert (end["size"], end["head"], end["root"]) == (seq, head.hex(), root.hex()), f"cut after seq {seq}"
            return seq, value
        entry = value["entry"]
        text = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False)  # RFC 8785, for our entries
        node = sha(b"\x00", text.encode())
        assert (entry["seq"], entry["prev"], value["hash"]) == (seq + 1, head.hex(), node.hex()), f"bad at seq {seq + 1}"
        head, rest = node, seq
        while rest & 1:
            node, rest = sha(b"\x01", peaks.pop(), node), rest >> 1
        peaks.append(node)
        seq += 1
    raise AssertionError(f"no checkpoint after seq {seq}")


def value_text(end):
    root = base64.b64encode(bytes.fromhex(end["root"])).decode()
    return f"{end['origin']}.nf/audit\n{end['size']}\n{root}\nhead {end['head']}"


def signed(value, ca):
    end, (text, _, line) = value["checkpoint"], value["note"].partition("\n\n")
    assert text == value_text(end), "the note is of another end"
    _, name, signature = line.split()
    with tempfile.TemporaryDirectory() as folder:
        def put(file, data):
            with open(f"{folder}/{file}", "wb") as to:
                to.write(data)
            return f"{folder}/{file}"

        cert, note = put("cert", value["certificate"].encode()), put("note", f"{text}\n".encode())
        host = ["-verify_hostname", f"{name}.server.{end['origin']}.nf", "-purpose", "sslserver"]
        subprocess.run(["openssl", "verify", *host, "-CAfile", ca, cert], check=True, stdout=subprocess.DEVNULL)
        key = put("key", subprocess.check_output(["openssl", "x509", "-in", cert, "-pubkey", "-noout"]))
        sig = put("sig", base64.b64decode(signature)[4:])
        subprocess.run(["openssl", "dgst", "-sha256", "-verify", key, "-signature", sig, note], check=True, stdout=subprocess.DEVNULL)
    return name


def half(end, half, name, ca):  # the ML-DSA half: the authority's word for a key, and that key's for the text
    def opened(note, der):
        text, _, line = note.partition("\n\n")
        _, signer, signature = line.split()
        key = serialization.load_der_public_key(base64.b64decode(der))
        assert isinstance(key, MLDSA65PublicKey), "another kind of key"
        key.verify(base64.b64decode(signature)[4:], f"{text}\n".encode())
        return text, signer

    for anchor in re.findall("BEGIN PUBLIC KEY-----(.*?)-----END", ca, re.S):
        try:
            said, above = opened(half["certificate"], anchor)
            break
        except Exception:  # another authority's, perhaps
            continue
    else:
        raise AssertionError("the ML-DSA half is by no authority of yours")
    origin, member, key, until = said.split("\n")
    cluster = end["origin"]
    assert (above, origin, member) == (f"{cluster}.nf/authority", f"{cluster}.nf/notary", name), "the halves are of two members"
    ends = datetime.datetime.fromisoformat(until.removeprefix("until "))
    assert ends > datetime.datetime.now(datetime.timezone.utc), f"its ML-DSA key ended, {until}"
    text, by = opened(half["note"], key)
    assert (text, by) == (value_text(end), name), "the ML-DSA half is of another end"
    return "ECDSA and ML-DSA-65"


def halves(value, name, ca):
    with open(ca, encoding="utf-8") as file:
        ca = file.read()
    if "BEGIN PUBLIC KEY" not in ca:
        return "ECDSA alone: this ca.pem has no ML-DSA key"
    assert "ml_dsa" in value, "the ML-DSA half of its signature is missing"
    if not MLDSA65PublicKey:
        blind = "ITS ML-DSA HALF WAS NOT LOOKED AT, for want of Python's cryptography 48"
        if not alone:
            sys.exit(f"{blind}; --ecdsa-alone takes the other half's word")
        return f"ECDSA; {blind}"
    return half(value["checkpoint"], value["ml_dsa"], name, ca)


alone = "--ecdsa-alone" in sys.argv
args = [arg for arg in sys.argv[1:] if arg != "--ecdsa-alone"]
size, last = check(open(args[0], encoding="utf-8"))
by = ""
if len(args) > 1:
    member = signed(last, args[1])
    by = f", signed by member {member}, {halves(last, member, args[1])}"
print("holds:", size, f"entries{by}")
