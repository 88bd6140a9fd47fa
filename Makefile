# README.md names two of these: `make run` and `make check`.
CARGO ?= cargo
RUN_DIR ?= $(CURDIR)/target/run
PACKAGES = gcc libc6-dev make pkg-config libsqlite3-dev sqlite3 libqb-dev iproute2 python3 procps psmisc mount util-linux rrdtool rrdcached \
	libcpg-dev libcmap-dev libquorum-dev libcorosync-common-dev corosync libclang-dev \
	g++ perl libperl-dev valgrind strace libjson-perl libnet-ssleay-perl
TEST_ARGS ?=
sim: export SEEDS ?= 20000

.PHONY: run check sim bench fmt lint build deps root unit compat check-package perl perl-modules

build: deps
	$(CARGO) build --release --locked --workspace

# The library in target/client/usr, the Perl modules in target/perl: PERL5LIB=target/perl perl ...
CLIENT = $(CURDIR)/target/client
perl: build perl-modules

# of what is built already
perl-modules:
	sh libpmxcfs/install target/release "$(CLIENT)" /usr /usr/lib
	$(MAKE) -C perl install BUILD="$(CURDIR)/target/perl-build" DESTDIR= PERLDIR="$(CURDIR)/target/perl" \
		ARCHDIR="$(CURDIR)/target/perl" PMXCFS_CFLAGS="-I$(CLIENT)/usr/include" \
		PMXCFS_LIBS="-L$(CLIENT)/usr/lib -lpmxcfs -Wl,-rpath,'\$$\$$ORIGIN/../../../../client/usr/lib'"

deps:
	@sh packaging/install-deps $(PACKAGES)

root:
	@[ "$$(id -u)" = 0 ] || { echo "this needs root: mounting and ownership cannot be tried without (use sudo)" >&2; exit 1; }

run: root build
	@sh packaging/run-local target/release/pmxcfs "$(RUN_DIR)"

check: root lint unit compat check-package

lint: deps
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

# libclang: the bindings of corosync are compared with its headers.
unit: deps
	REQUIRE_LIBCLANG=1 $(CARGO) test --locked --workspace --exclude compat-tests --no-fail-fast $(TEST_ARGS)

# More simulated clusters than `make check` tries; SEED=n replays one.
sim: deps
	$(CARGO) test --locked --test simulation -- --nocapture

compat: build perl
	PMXCFS_UNDER_TEST=$${PMXCFS_UNDER_TEST:-$(CURDIR)/target/release/pmxcfs} \
	$(CARGO) test --locked -p compat-tests --no-fail-fast $(TEST_ARGS) -- --nocapture --test-threads=1

# Builds the Debian packages and installs them on a fresh Debian, which is kept in target/package.
PACKAGE_DIR = $(CURDIR)/target/package
check-package: root deps
	@sh packaging/install-deps build-essential debhelper debootstrap fakeroot lintian
	mkdir -p "$(PACKAGE_DIR)"
	bash compat-tests/tools/machine.sh base "$(PACKAGE_DIR)/base" & base=$$!; \
	sh packaging/build-package "$(PACKAGE_DIR)" -j$$(nproc) && wait $$base
	PACKAGES_UNDER_TEST="$(PACKAGE_DIR)" \
	$(CARGO) test --locked -p compat-tests --test package $(TEST_ARGS) -- --nocapture --test-threads=1

bench: root build
	PMXCFS_UNDER_TEST=$${PMXCFS_UNDER_TEST:-$(CURDIR)/target/release/pmxcfs} \
	$(CARGO) bench --locked -p compat-tests --bench '*'

fmt:
	$(CARGO) fmt --all
