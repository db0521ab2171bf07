"""The system calls that the standard library of Python 3.11 lacks, and the seccomp filter. Linux on x86-64."""

import ctypes
import errno
import os
import signal
import struct

NEW_NAMESPACE_MOUNTS, NEW_NAMESPACE_PIDS = 0x00020000, 0x20000000
READ_ONLY, NO_SETUID, NO_DEVICES, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 4096, 16384, 1 << 18

_SHARE_MEMORY, _SHARE_DESCRIPTORS, _PAUSE = 0x100, 0x400, 34
_SET_DUMPABLE, _SET_SECCOMP, _DROP_BOUND, _SET_NO_NEW_PRIVS, _AMBIENT = 4, 22, 24, 38, 47
_CAPABILITIES_VERSION = 0x20080522

# What no program under judgement needs: namespaces, mounts, other processes' memory, the kernel's own doors, what all
# share (io_setup), and memory that belongs to no process (memfd, System V, message queues, attributes of files, pages
# and messages that wait in a pipe or socket), which the memory limit would not see.
_DENIED = {
    "ptrace": 101, "syslog": 103, "personality": 135, "ustat": 136, "pivot_root": 155, "adjtimex": 159, "chroot": 161,
    "acct": 163, "settimeofday": 164, "mount": 165, "umount2": 166, "swapon": 167, "swapoff": 168, "reboot": 169,
    "sethostname": 170, "setdomainname": 171, "iopl": 172, "ioperm": 173, "init_module": 175, "delete_module": 176,
    "quotactl": 179, "lookup_dcookie": 212, "clock_settime": 227, "mq_open": 240, "kexec_load": 246, "add_key": 248,
    "request_key": 249, "keyctl": 250, "unshare": 272, "move_pages": 279, "perf_event_open": 298, "fanotify_init": 300,
    "name_to_handle_at": 303, "open_by_handle_at": 304, "clock_adjtime": 305, "setns": 308, "process_vm_readv": 310,
    "process_vm_writev": 311, "kcmp": 312, "finit_module": 313, "memfd_create": 319, "kexec_file_load": 320, "bpf": 321,
    "userfaultfd": 323, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_getfd": 438,
    "mount_setattr": 442, "quotactl_fd": 443, "memfd_secret": 447, "modify_ldt": 154, "shmget": 29, "semget": 64,
    "msgget": 68, "socket": 41, "setsockopt": 54, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "io_setup": 206,
    "vmsplice": 278,
}  # fmt: skip
_MMAP, _SOCKETPAIR, _CLONE, _CLONE3 = 9, 53, 56, 435
_UNIX = 1
_SHARED, _ANONYMOUS = 0x01, 0x20  # with both, all pages stay as long as one of them is mapped anywhere
_UNKNOWN = 463  # the first system call that is younger than this list, and has no reader's judgement
_NAMESPACE_FLAGS = 0x7E020000  # mounts, cgroup, UTS, IPC, user, PIDs, network
_X86_64 = 0xC000003E
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000

_libc = ctypes.CDLL(None, use_errno=True)
_idle_stack = ctypes.create_string_buffer(16_384)


def _called(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    _called(_libc.unshare(flags), "unshare")


def enter_pid_namespace(descriptor: int) -> None:
    """The children of this process, not itself, are then in it."""
    _called(_libc.setns(descriptor, NEW_NAMESPACE_PIDS), "setns")


def start_idle_process() -> int:
    """It waits until it is killed, and its children leave no trace when they end.

    Since it never runs anything of Python it can share this process's memory: a fork of an interpreter costs far more.
    There must be one at a time, and no other child of this process.
    """
    top = (ctypes.addressof(_idle_stack) + len(_idle_stack)) & ~15
    flags = _SHARE_MEMORY | _SHARE_DESCRIPTORS | signal.SIGCHLD
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # it inherits this
    try:
        process: int = _libc.clone(_libc.syscall, ctypes.c_void_p(top), flags, ctypes.c_void_p(_PAUSE))
        _called(process, "clone")
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return process


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    arguments = (source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _called(_libc.mount(*arguments), f"mount {kind or source} on {target}")


def forbid_inspection() -> None:
    """No process of the same user may read this one's memory or descriptors, by ptrace or /proc."""
    _called(_prctl(_SET_DUMPABLE, 0), "PR_SET_DUMPABLE")


def drop_bounding_set() -> None:
    """No program that is started from here can have a capability, whatever its file says."""
    capability = 0
    while _prctl(_DROP_BOUND, capability) == 0:
        capability += 1
    if ctypes.get_errno() != errno.EINVAL:  # EINVAL: the kernel has no more of them
        _called(-1, "PR_CAPBSET_DROP")


def drop_privileges(user: int | None) -> None:
    """Every capability. ``user`` is None where a user namespace has only one."""
    _called(_prctl(_AMBIENT, 4), "PR_CAP_AMBIENT_CLEAR_ALL")
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    header, nothing = struct.pack("Ii", _CAPABILITIES_VERSION, 0), bytes(24)
    _called(_libc.capset(header, nothing), "capset")


def forbid_new_privileges() -> None:
    """setuid programs give nothing from now on."""
    _called(_prctl(_SET_NO_NEW_PRIVS, 1), "PR_SET_NO_NEW_PRIVS")


def install_filter() -> None:
    """Refuse the system calls of `_DENIED`, and new namespaces, in this process and all that it starts."""
    _called(_prctl(_SET_SECCOMP, 2, _filter), "PR_SET_SECCOMP")


def seccomp_program() -> bytes:
    """Berkeley packet filter: (code, jump if true, jump if not, operand), eight bytes an instruction."""

    def refuse(number: int) -> tuple[int, int, int, int]:
        return _RETURN, 0, 0, _ERRNO | number

    program = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _X86_64), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    program += [(_AT_LEAST, 0, 1, _UNKNOWN), refuse(errno.ENOSYS)]  # those of the x32 kind have greater numbers
    program += [(_EQUAL, 0, 1, _CLONE3), refuse(errno.ENOSYS)]  # libc then uses clone, whose flags a filter can see
    for number in sorted(_DENIED.values()):
        program += [(_EQUAL, 0, 1, number), refuse(errno.EPERM)]
    allow, denied = (_RETURN, 0, 0, _ALLOW), refuse(errno.EPERM)
    program += [(_EQUAL, 0, 4, _CLONE), (_LOAD, 0, 0, _argument(0)), (_ANY_BIT, 0, 1, _NAMESPACE_FLAGS), denied, allow]
    program += [(_EQUAL, 0, 4, _SOCKETPAIR), (_LOAD, 0, 0, _argument(0)), (_EQUAL, 1, 0, _UNIX), denied, allow]
    program += [(_EQUAL, 0, 4, _MMAP), (_LOAD, 0, 0, _argument(3))]
    program += [(_ANY_BIT, 0, 2, _ANONYMOUS), (_ANY_BIT, 0, 1, _SHARED), denied, allow]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def _argument(number: int) -> int:
    """Where the filter finds the lower half of an argument; no flag is in the upper one."""
    return 16 + 8 * number


def _prctl(option: int, argument: object, argument3: object = 0) -> int:
    def long(value: object) -> object:
        return ctypes.c_ulong(value) if isinstance(value, int) else value

    result: int = _libc.prctl(option, long(argument), long(argument3), ctypes.c_ulong(0), ctypes.c_ulong(0))
    return result


_instructions = ctypes.create_string_buffer(seccomp_program())
_filter = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(_instructions) // 8, ctypes.addressof(_instructions)))
