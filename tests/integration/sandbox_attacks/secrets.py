"""What belongs to the judge, or to another submission."""

from tests.integration.sandbox_attacks.attack import attack

ATTACKS = [
    attack("the judge's environment", "attempt(lambda: [v for v in os.environ.values() if '@SECRET@' in v])"),
    attack(
        "everybody's environment",
        """
        found = []
        for path in glob.glob("/proc/*/environ"):
            try: found += [path] if b"RING_RAY_SECRET" in open(path, "rb").read() else []
            except OSError: pass
        attempt(lambda: found)
        """,
    ),
    attack("a file of the judge's", "attempt(lambda: open('@SECRET_FILE@').read())"),
    attack(
        "a file of the judge's, by a link", "os.symlink('@SECRET_FILE@', 'link')\nattempt(lambda: open('link').read())"
    ),
    attack("a file of the judge's, by its root", "attempt(lambda: open('/proc/1/root@SECRET_FILE@').read())"),
    attack("a file of the judge's, by dots", "attempt(lambda: open('/tmp/../..' + '@SECRET_FILE@').read())"),
    attack("passwords", "attempt(lambda: open('/etc/shadow').read())"),
    attack("home directories", "attempt(lambda: [p for p in glob.glob('/home/*') + glob.glob('/root/.ssh*')])"),
    attack("the first process's memory", "attempt(lambda: open('/proc/1/mem', 'rb').read(1))"),
    attack("the first process's descriptors", "attempt(lambda: os.listdir('/proc/1/fd'))"),
    attack(
        "processes other than its own and the first",
        "attempt(lambda: [p for p in os.listdir('/proc') if p.isdigit() and int(p) not in (1, os.getpid())])",
    ),
    attack(
        "descriptors that are not its own",
        """
        def is_open(fd):
            try: return os.fstat(fd) is not None
            except OSError: return False
        attempt(lambda: [fd for fd in range(4, 4096) if is_open(fd)])
        """,
    ),
    attack(
        "an earlier submission, in the memory that this one was forked with",
        """
        import re
        secret, found = re.compile(b"@EARLIER@"[::-1] + rb"[0-9]{8}"), []
        for line in open("/proc/self/maps"):
            span, mode = line.split()[:2]
            if mode.startswith("r") and "[v" not in line:
                start, stop = (int(end, 16) for end in span.split("-"))
                found += secret.findall(ctypes.string_at(start, stop - start))
        attempt(lambda: found)
        """,
    ),
]
