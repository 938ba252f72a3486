"""Checks an export of the audit trail with nothing of ours: python3 audit_verify.py export.jsonl [ca.pem]"""
import base64, hashlib, json, subprocess, sys, tempfile


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


def signed(value, ca):
    end, (text, _, line) = value["checkpoint"], value["note"].partition("\n\n")
    root = base64.b64encode(bytes.fromhex(end["root"])).decode()
    assert text == f"{end['origin']}.nf/audit\n{end['size']}\n{root}\nhead {end['head']}", "the note is of another end"
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


size, last = check(open(sys.argv[1], encoding="utf-8"))
by = f", signed by member {signed(last, sys.argv[2])}" if len(sys.argv) > 2 else ""
print("holds:", size, f"entries{by}")
