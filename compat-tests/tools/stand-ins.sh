#!/bin/bash
# stand-ins.sh OUT [DAEMON]: Debian packages in OUT that stand for those of Proxmox VE in tests/package.rs.
# pve-cluster has the files and relations of the original (docs/protocol/perl.md 1), its scripts are
# debhelper's; DAEMON is its pmxcfs, else a script that only looks like one.
set -eu
out=$1 daemon=${2:-}
work=$out/stand-ins
rm -rf "$work"; mkdir -p "$work"

# package NAME RELATIONS [SCRIPTS…]: one without files, all but pve-cluster
package() {
  local name=$1 relations=$2 dir=$work/$1
  mkdir -p "$dir/DEBIAN"
  printf 'Package: %s\nVersion: 9.1.0\nArchitecture: all\nMaintainer: Test <test@example.org>\n%sDescription: stand-in\n' "$name" "$relations" >"$dir/DEBIAN/control"
  if [ "$name" = pve-manager ]; then
    echo 'interest-noawait pve-api-updates' >"$dir/DEBIAN/triggers"
    printf '#!/bin/sh\n[ "$1" != triggered ] || echo "$2" >>/var/log/pve-manager-triggered\n' >"$dir/DEBIAN/postinst"
    chmod 755 "$dir/DEBIAN/postinst"
  fi
  dpkg-deb --root-owner-group -b "$dir" "$out" >/dev/null
}
package libpve-common-perl ''
package pve-manager $'Depends: pve-cluster (>= 9.0.1)\n'
package libpve-access-control $'Depends: pve-cluster (>= 6.1-4)\n'
package qemu-server $'Depends: pve-cluster\n'
# needs more than is provided: must not be satisfied
package needs-newer $'Depends: pve-cluster (>= 9.1.7)\n'

src=$work/pve-cluster-9.1.6
mkdir -p "$src/debian/source" "$src/tree"
cd "$src"
echo '3.0 (native)' >debian/source/format
printf 'pve-cluster (9.1.6) unstable; urgency=medium\n\n  * Stand-in.\n\n -- Test <test@example.org>  Mon, 01 Jan 2024 00:00:00 +0000\n' >debian/changelog
cat >debian/control <<'EOF'
Source: pve-cluster
Maintainer: Test <test@example.org>
Build-Depends: debhelper-compat (= 13)
Rules-Requires-Root: no

Package: pve-cluster
Architecture: any
Depends: corosync (>= 2.3.4-1), fuse, libfuse2 (>= 2.9.2-4), libglib2.0-0, libpve-common-perl (>= 6.0-7~), libqb100, libsqlite3-0, sqlite3, systemd, ${perl:Depends}, ${misc:Depends}
Breaks: pve-manager (<= 6.0-12), qemu-server (<= 6.0-13)
Description: stand-in for the original
EOF
vendorarch=$(perl -MConfig -e 'print substr $Config{vendorarch}, 1')
put() { mkdir -p "tree/$(dirname "$1")"; cat >"tree/$1"; }
if [ -n "$daemon" ]; then
  mkdir -p tree/usr/bin; cp "$daemon" tree/usr/bin/pmxcfs
else
  printf '#!/bin/sh\n# stands for the C daemon\nsleep 86400 </dev/null >/dev/null 2>&1 &\necho $! >/run/pve-cluster.pid\n' | put usr/bin/pmxcfs
fi
for f in usr/bin/create_pmxcfs_db usr/share/perl5/PVE/Cluster.pm usr/share/perl5/PVE/Cluster/IPCConst.pm \
  usr/share/perl5/PVE/IPCC.pm "$vendorarch/auto/PVE/IPCC/IPCC.so" usr/lib/sysctl.d/10-pve.conf \
  usr/share/man/man8/pmxcfs.8 usr/share/doc/pve-cluster/README usr/share/doc/pve-cluster/SOURCE; do
  echo 'of the original package' | put "$f"
done
chmod 755 tree/usr/bin/*
mkdir -p tree/var/lib/pve-cluster
cat >debian/pve-cluster.service <<'EOF'
[Unit]
Description=The Proxmox VE cluster filesystem
ConditionFileIsExecutable=/usr/bin/pmxcfs
Wants=corosync.service rrdcached.service
Before=corosync.service cron.service shutdown.target
After=network.target sys-fs-fuse-connections.mount time-sync.target rrdcached.service
DefaultDependencies=no
Conflicts=shutdown.target

[Service]
Type=forking
PIDFile=/run/pve-cluster.pid
ExecStart=/usr/bin/pmxcfs
KillMode=mixed
Restart=on-failure
TimeoutStopSec=10

[Install]
WantedBy=multi-user.target
EOF
cat >debian/rules <<'EOF'
#!/usr/bin/make -f
%:
	dh $@
override_dh_auto_install:
	mkdir -p debian/pve-cluster
	cp -a tree/. debian/pve-cluster/
override_dh_strip override_dh_shlibdeps override_dh_dwz override_dh_makeshlibs:
EOF
chmod +x debian/rules
dpkg-buildpackage -us -uc -b >"$work/build.log" 2>&1 || { tail -n 20 "$work/build.log" >&2; exit 1; }
mv "$work"/pve-cluster_*.deb "$out"
rm -rf "$work"
