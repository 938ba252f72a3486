"""Checks an export of the audit trail with nothing of ours: python3 audit_verify.py export.jsonl"""
import hashlib, json, sys


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
            return seq
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


print("holds:", check(open(sys.argv[1], encoding="utf-8")), "entries")
