# Weft: `make` lists what can be made. Make only calls Go; the logic is in ./image and ./test-vm.
.DEFAULT_GOAL := help
SHELL := /bin/bash
GO ?= go
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

# LEDE ImageBuilder's variables (the same as flags of `go run ./image build`).
BOARD ?= $(or $(PROFILE),x86-64)
ROLE ?= router
BIN_DIR ?= bin
build_flags = --board "$(BOARD)" --role "$(ROLE)" --bin-dir "$(BIN_DIR)" \
	$(if $(PACKAGES),--packages "$(PACKAGES)") $(if $(FILES),--files "$(FILES)") \
	$(if $(EXTRA_IMAGE_NAME),--extra-image-name "$(EXTRA_IMAGE_NAME)") \
	$(if $(DISABLED_SERVICES),--disabled-services "$(DISABLED_SERVICES)") \
	$(if $(ROOTFS_PARTSIZE),--rootfs-partsize "$(ROOTFS_PARTSIZE)") \
	$(if $(filter strict,$(PINS)),--strict-pins)

# The race detector needs a C compiler; without one the same tests run without it, and say so.
race := $(if $(shell command -v gcc || command -v clang),-race)

.PHONY: help image run info manifest host test judges lint unit boot-test upgrade-test test-power lab lab-images lab-test soak fuzz repro bench-build bench-boot bench-mptcp bench-upgrade bench-router \
	pins-update clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  make %-14s %s\n", $$1, $$2}'

image: ## build the images of BOARD and ROLE into bin/targets/
	@$(GO) run ./image build $(build_flags)

run: image ## build, boot in QEMU, serial console in this terminal (Ctrl-A X leaves)
	@$(GO) run ./test-vm boot --board "$(BOARD)" --bin-dir "$(BIN_DIR)"

info: ## list the boards, their packages and devices
	@$(GO) run ./image info

manifest: ## list what an image would contain, as "name - version"
	@$(GO) run ./image manifest $(build_flags)

host: ## the device binary for this machine, one link per applet and service, in bin/host/
	@mkdir -p bin/host && CGO_ENABLED=0 $(GO) build -trimpath -o bin/host/weft ./init
	@grep '^/' init/applets.txt | grep -v ' device$$' | while read -r p; do ln -sf weft "bin/host/$${p##*/}"; done
	@echo "bin/host/weft and $$(ls bin/host | grep -vcx weft) links"

test: $(if $(CI),judges) lint unit image repro boot-test lab-test ## lint, unit tests, fuzz seeds, reproducibility, boot tests, lab; upgrade-test is apart

# The foreign programs that judge our output. Tests skip what is missing, and say so; CI installs them first.
judges_for := ip:iproute2 nft:nftables iperf3:iperf3 haproxy:haproxy mptcpize:mptcpize tshark:tshark openssl:openssl \
	mksquashfs:squashfs-tools cpio:cpio fsck.fat:dosfstools sgdisk:gdisk sfdisk:fdisk dash:dash busybox:busybox qemu-io:qemu-utils \
	dnsmasq:dnsmasq-base dhclient:isc-dhcp-client udhcpc:udhcpc dig:bind9-dnsutils rdisc6:ndisc6 nsenter:util-linux \
	ssh:openssh-client sshpass:sshpass dropbearkey:dropbear-bin curl:curl
judges_missing = $(foreach j,$(judges_for),$(if $(shell PATH="$$PATH:/usr/sbin:/sbin" command -v $(firstword $(subst :, ,$(j)))),,$(lastword $(subst :, ,$(j)))))

judges: ## install the foreign programs that judge our output in tests (Debian, as root)
	@missing="$(strip $(judges_missing))"; [ -z "$$missing" ] || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; } \
		|| echo "could not install $$missing: the tests that need them are skipped"

lint: ## gofmt, vet, staticcheck
	@out=$$(gofmt -l image init services boards test-vm); [ -z "$$out" ] || { echo "not gofmt-ed (run gofmt -w on them):"; echo "$$out"; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

unit: ## unit tests with the race detector, fuzz seeds included
	@[ -n "$(race)" ] || echo "make unit: no C compiler found, running without the race detector"
	$(GO) test $(race) $$($(GO) list ./... | grep -v -e ^weft/test-vm/boot -e ^weft/test-vm/labtest -e ^weft/test-vm/routertest -e ^weft/test-vm/upgradetest)

boot-test: image ## boot the built images in QEMU and check them
	$(GO) test -count=1 -timeout 25m ./test-vm/boot/...

upgrade-test: image ## upgrade guests to good and to bad systems, cut the power (a sample)
	$(GO) test -count=1 -timeout 25m ./test-vm/upgradetest/...

test-power: image ## cut the power at 300 writes of an upgrade, a rollback, a reset, commits; boot each (POWER_FLAGS="--cuts 20 --seed 7")
	@$(GO) run ./test-vm test-power $(POWER_FLAGS)

bench-upgrade: image ## bytes and seconds of an upgrade, whole and by delta
	@$(GO) run ./test-vm bench-upgrade

bench-router: ## the DNS cache beside dnsmasq: answers per second and p99 as ratios
	@$(GO) run ./services/dhcp/internal/bench

lab-images: ## the images that the lab's guests run, a folder a role in bin/lab/
	@for r in router gateway exit; do $(GO) run ./image build --board x86-64 --role $$r --bin-dir "$(BIN_DIR)/lab/$$r" \
		--packages "iperf3 traffic-control mptcp lab hostapd wpasupplicant iw wireguard" || exit 1; done

lab: lab-images host ## every topology in QEMU guests, each figure beside its limit (half an hour)
	$(GO) run ./test-vm run --backend qemu --html --all

lab-test: lab-images host ## the two-path topology in QEMU, the others in namespaces (these as root)
	$(GO) test -count=1 -timeout 25m ./test-vm/labtest/... ./test-vm/routertest/...

soak: host ## random flows under random faults, every byte compared (as root; SOAK_FLAGS="--duration 1m --random")
	@$(GO) run ./test-vm soak $(SOAK_FLAGS)

fuzz: ## fuzz every parser for FUZZTIME each (default 30s)
	@for p in $$($(GO) list ./...); do for f in $$($(GO) test -list '^Fuzz' $$p | grep ^Fuzz); do \
		echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(or $(FUZZTIME),30s) $$p || exit 1; done; done

repro: ## build twice under different conditions and compare every byte
	@$(GO) run ./image repro --board "$(BOARD)" --role "$(ROLE)"

bench-build: ## build times and image size, as ratios to a plain rebuild in the same run
	@$(GO) run ./image bench --board "$(BOARD)" --role "$(ROLE)"

bench-boot: image ## boot times, as ratios to the same kernel with a bare Go init
	@$(GO) run ./test-vm bench --board "$(BOARD)" --bin-dir "$(BIN_DIR)"

bench-mptcp: host ## the MPTCP proxy beside HAProxy and plain routing, each figure beside what it must reach (as root)
	@$(GO) run ./test-vm bench-mptcp --install $(BENCH_FLAGS)

pins-update: ## move image/pins.toml to the suite's newest versions
	@$(GO) run ./image pins update

clean: ## remove what was built (the cache of downloads stays)
	rm -rf bin test-vm/out
