#!/bin/bash
# A Debian of its own, with systemd, to install packages in (tests/package.rs).
#   machine.sh base BASE       makes the minimal root BASE from this machine's mirror, unless it is there
#   machine.sh boot DIR BASE   boots a fresh copy of it (an overlay in DIR): DIR/init.pid is its process 1
#   machine.sh down DIR        ends it
# The machine has namespaces and a cgroup of its own, no network, and a read-only /sys and /proc/sys.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
contents="systemd systemd-sysv corosync sqlite3 perl librrd8 rrdcached libjson-perl libnet-ssleay-perl libqb100 fuse libfuse2 libglib2.0-0"

base() {
  local stamp; stamp=$(sha256sum "$here/machine.sh")
  [ "$(cat "$1/.made-by" 2>/dev/null)" != "$stamp" ] || return 0
  local sources uri suite
  # what this machine has of Debian, updates included: packages built here may need them
  sources=$(apt-get indextargets --format 'deb $(SITE) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' | grep -E '/debian(-security)?/? ')
  read -r _ uri suite _ < <(echo "$sources" | grep -vE -- '-(security|updates|backports)' | head -n 1)
  rm -rf "$1"; mkdir -p "$1"
  debootstrap --variant=minbase "$suite" "$1" "$uri" >"$1.log" 2>&1 || { tail -n 20 "$1.log" >&2; exit 1; }
  echo "$sources" >"$1/etc/apt/sources.list"
  printf '#!/bin/sh\nexit 101\n' >"$1/usr/sbin/policy-rc.d"; chmod +x "$1/usr/sbin/policy-rc.d"
  echo force-unsafe-io >"$1/etc/dpkg/dpkg.cfg.d/quick"
  unshare -m -p --fork --propagation private bash -c "
    mount -t proc proc $1/proc; export DEBIAN_FRONTEND=noninteractive
    chroot $1 apt-get update -qq && chroot $1 apt-get dist-upgrade -y -qq &&
    chroot $1 apt-get install -y -qq --no-install-recommends $contents" >>"$1.log" 2>&1 || { tail -n 20 "$1.log" >&2; exit 1; }
  rm -f "$1/usr/sbin/policy-rc.d" "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/*_*
  echo 'deb [trusted=yes] file:/packages ./' >"$1/etc/apt/sources.list"
  rm -f "$1"/etc/apt/sources.list.d/*
  echo node1 >"$1/etc/hostname"
  printf '127.0.0.1 localhost\n192.0.2.1 node1\n' >"$1/etc/hosts"
  # What has no place here: the host's audit, getty on no terminal, corosync and rrdcached without configuration.
  chroot "$1" systemctl --quiet mask systemd-journald-audit.socket systemd-modules-load.service sys-kernel-debug.mount sys-kernel-tracing.mount console-getty.service corosync.service rrdcached.service apt-daily.timer apt-daily-upgrade.timer
  echo "$stamp" >"$1/.made-by"
}

# Process 1 of the machine, in namespaces of its own.
init() {
  local dir=$1 base=$2 root=$1/root d
  mount -t overlay overlay -o "lowerdir=$base,upperdir=$dir/upper,workdir=$dir/work" "$root"
  mount -t proc proc "$root/proc"; mount --bind "$root/proc/sys" "$root/proc/sys"; mount -o remount,bind,ro "$root/proc/sys"
  mount -t tmpfs tmpfs "$root/run" -o mode=755; mount -t tmpfs tmpfs "$root/tmp"
  mount -t sysfs sysfs "$root/sys" -o ro; mount -t tmpfs tmpfs "$root/sys/fs/cgroup"; mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
  mount -t tmpfs tmpfs "$root/dev" -o mode=755
  for d in null zero full random urandom tty fuse; do touch "$root/dev/$d"; mount --bind "/dev/$d" "$root/dev/$d"; done
  mkdir "$root/dev/shm"; mount -t tmpfs tmpfs "$root/dev/shm"
  hostname node1; ip link set lo up
  cd "$root"; mkdir -p old; pivot_root . old; umount -l /old
  exec env -i container=lxc PATH=/usr/sbin:/usr/bin:/sbin:/bin /sbin/init --show-status=0 --log-target=journal </dev/null >/dev/null 2>&1
}

cgroup() { awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts; }

boot() {
  local dir=$1 group t
  [ -n "$(cgroup)" ] || { echo "no cgroup2 is mounted: systemd cannot run here" >&2; exit 1; }
  group=$(cgroup)/$(basename "$dir")
  mkdir -p "$dir"/{upper,work,root} "$group"
  (echo $BASHPID >"$group/cgroup.procs"
   exec unshare -m -p -u -i -n -C --fork --propagation private "$here/machine.sh" init "$dir" "$2" </dev/null >"$dir/boot.log" 2>&1) &
  echo $! >"$dir/outer.pid"
  for t in $(seq 300); do
    pgrep -P "$(cat "$dir/outer.pid")" >"$dir/init.pid" 2>/dev/null || true
    if [ -s "$dir/init.pid" ] && in_machine "$dir" systemctl is-system-running --wait >/dev/null 2>&1; then return 0; fi
    [ -d "/proc/$(cat "$dir/outer.pid")" ] || break
    sleep 0.1
  done
  echo "systemd does not come up:" >&2; cat "$dir/boot.log" >&2
  in_machine "$dir" systemctl --failed --no-pager >&2 || true
  exit 1
}

in_machine() { local dir=$1; shift; nsenter -t "$(cat "$dir/init.pid")" -m -p -u -i -n -C -r -w -- "$@"; }

down() {
  local group
  [ ! -s "$1/init.pid" ] || kill -9 "$(cat "$1/init.pid")" 2>/dev/null || true
  group=$(cgroup)/$(basename "$1")
  for _ in $(seq 50); do
    [ ! -d "$group" ] || find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
    [ -d "$group" ] || break
    sleep 0.1
  done
  rm -rf "$1"
}

case $1 in base | boot | init | down) "$@" ;; *) sed -n '2,6p' "$0" >&2; exit 2 ;; esac
