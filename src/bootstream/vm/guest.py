"""What runs in the guest: the initrd's ``/init``, and the one that runs a command.

``/init`` loads modules, finds and mounts the root, makes ``/proc``, ``/sys``, ``/dev`` and
``/run`` in it, puts the files that came along into ``/run/bootstream``, and goes over to the
template: to its own init, to a shell where it has none, or to :data:`RUN`, which runs one
command and switches the machine off.

What it has to say goes out on the second serial port, a line each, so that the console is
the template's alone: ``NAME UPTIME [DETAIL]``, e.g. ``root 0.84`` or ``exit 1.20 3``. The
names are in :class:`Stage`. Whoever listens ends the machine after the last word; the guest
switches off by itself only where nobody does. Setting the console's modes before each
report waits until what was written to it is out (``stty`` drains).
"""

from __future__ import annotations

from enum import StrEnum

FOLDER = "/run/bootstream"
"""Where files that came along are, in the guest."""


class Stage(StrEnum):
    """How far a guest has come, as it reports itself.

    ``START``: the initrd runs. ``ROOT``: the root is mounted. ``INIT``: the template's init,
    shell or command is about to start. ``EXIT``: the command, or shell, ended with the code
    that follows. ``FAILED``: the initrd cannot go on, for the reason that follows.
    """

    START = "start"
    ROOT = "root"
    INIT = "init"
    EXIT = "exit"
    FAILED = "failed"


_COMMON = """\
report() {
	stty -F /dev/console onlcr 2>/dev/null
	stage=$1; shift
	read -r up rest < /proc/uptime
	echo "$stage $up $*" > /dev/ttyS1
}
off() {
	sleep 5
	reboot -f
	sleep 60
}
"""

INIT = (
    """\
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /newroot /bin
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev 2>/dev/null
mount -t proc proc /proc
mount -t sysfs sys /sys
stty -F /dev/ttyS1 raw -echo 2>/dev/null
"""
    + _COMMON
    + """\
fail() {
	echo "bootstream: $*" > /dev/console
	report failed "$*"
	off
}
report start
. /etc/boot
for module in /modules/*.ko; do
	[ -e "$module" ] || break
	insmod "$module" || fail "the kernel refuses the module $module"
done
if [ -n "$NETWORK" ]; then
	ip link set lo up
	ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0 && \\
		ip route add default via 10.0.2.2 || fail "the network does not come up"
fi
if [ -n "$PROBE" ]; then
	report exit 0
	off
fi
tries=0
until [ -b /dev/vda ]; do
	tries=$((tries + 1))
	[ $tries -lt 200 ] || fail "there is no disk: the kernel lacks virtio_blk or its bus"
	sleep 0.05
done
mount -t ext4 -o "$ROOT_OPTIONS" /dev/vda /newroot || fail "the root cannot be mounted"
report root
for folder in proc sys dev run; do
	[ -d /newroot/$folder ] || mkdir /newroot/$folder 2>/dev/null || \\
		fail "the template has no folder /$folder, and is read-only"
done
mount -t tmpfs -o mode=755,nosuid,nodev run /newroot/run
mkdir /newroot/run/bootstream
cp /bin/busybox /newroot/run/bootstream/busybox
cp -a /payload/. /newroot/run/bootstream/
for folder in proc sys dev; do mount --move /$folder /newroot/$folder; done
mkdir -p /newroot/dev/pts /newroot/dev/shm
mount -t devpts -o mode=620,ptmxmode=666 pts /newroot/dev/pts 2>/dev/null
mount -t tmpfs -o mode=1777,nosuid,nodev shm /newroot/dev/shm
if [ -z "$COMMAND" ] && [ -x /newroot/sbin/init -o -L /newroot/sbin/init ]; then
	read -r up rest < /newroot/proc/uptime
	echo "init $up /sbin/init" > /newroot/dev/ttyS1
	exec switch_root /newroot /sbin/init
fi
exec switch_root /newroot /run/bootstream/busybox sh /run/bootstream/run
"""
)

RUN = (
    """\
box=/run/bootstream/busybox
sync() { $box sync; }
stty() { $box stty "$@"; }
sleep() { $box sleep "$@"; }
reboot() { $box reboot "$@"; }
"""
    + _COMMON
    + """\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root TERM=${TERM:-linux}
cd /
shell="$box sh"
[ -x /bin/sh ] && shell=/bin/sh
$box hostname bootstream
if [ -e /run/bootstream/command ]; then
	report init "$shell"
	stty -F /dev/console -onlcr 2>/dev/null
	$shell /run/bootstream/command < /dev/null
	code=$?
else
	report init "$shell"
	$box setsid $box cttyhack $shell
	code=$?
fi
sync
$box mount -o remount,ro / 2>/dev/null
report exit $code
off
"""
)


def settings(*, command: bool, network: bool, probe: bool, read_only: bool) -> bytes:
    """Return ``/etc/boot`` of the initrd: what this boot is to be."""
    values = {
        "COMMAND": "1" if command else "",
        "NETWORK": "1" if network else "",
        "PROBE": "1" if probe else "",
        "ROOT_OPTIONS": "ro,noload" if read_only else "rw",
    }
    return "".join(f"{name}='{value}'\n" for name, value in values.items()).encode()
