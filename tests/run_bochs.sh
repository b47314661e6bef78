#!/bin/sh
# Runs the AVX-512 kernels as compiled on a machine without AVX-512: in Linux, under Bochs.
#   run_bochs.sh driver [MODEL...]                tests/emulate_check.c, tests/kernels_driver.c
#   run_bochs.sh pytest MODEL ARGUMENT...         this tree's tests, by $PYTHON with NumPy
#   run_bochs.sh shell MODEL COMMAND...           anything else there, e.g. python -c '...'
# Models: those of Bochs ("bochs --help cpu"); without one, driver takes corei7_skylake_x
# (AVX-512), corei7_icelake_u (and VNNI) and sapphire_rapids (and BF16, FP16).
#
# Installs nothing; it needs
#   BOCHS       Bochs 3.0 or later with --enable-x86-64 --enable-cpu-level=6 --enable-avx
#               --enable-evex and --with-nogui
#   BOCHS_BIOS, BOCHS_VGABIOS    its two ROM files (packages bochsbios and vgabios)
#   KERNEL      an unpacked linux-image-*-cloud-amd64 package: boot/vmlinuz*, lib/modules
#   and isolinux, xorriso, cpio, a static busybox, mkfs.ext4; python and NumPy for pytest.
# The guest has one processor. CORES: how many threads the library takes (2); TABLES: those that
# driver runs (all); WITHOUT: features of the model to leave out ("bochs --help features" and the
# model's source name them); KEEP=folder leaves images and logs there, serial.txt as it grows;
# QUIET= shows the kernel's messages. Bochs models no time: nothing measured there counts.
set -e
cd "$(dirname "$0")/.."
mode=${1:-driver}
[ $# -eq 0 ] || shift
bochs=${BOCHS:-bochs}
bios=${BOCHS_BIOS:-/usr/share/bochs/BIOS-bochs-latest}
vgabios=${BOCHS_VGABIOS:-/usr/share/vgabios/vgabios.bin}
isolinux=${ISOLINUX:-/usr/lib/ISOLINUX/isolinux.bin}
ldlinux=${LDLINUX:-/usr/lib/syslinux/modules/bios/ldlinux.c32}
busybox=${BUSYBOX:-/bin/busybox}
python=${PYTHON:-python3}
cc=${CC:-cc}

missing=
for tool in "$bochs" xorriso cpio mkfs.ext4; do
    command -v "$tool" >/dev/null || missing="$missing $tool"
done
for file in "$bios" "$vgabios" "$isolinux" "$ldlinux" "$busybox"; do
    [ -f "$file" ] || missing="$missing $file"
done
[ -n "$KERNEL" ] && [ -d "$KERNEL/boot" ] || missing="$missing KERNEL=folder"
if [ -n "$missing" ]; then
    echo "run_bochs.sh: missing:$missing (the head of this file says what each is)" >&2
    exit 3
fi

if [ -n "$KEEP" ]; then
    out=$KEEP
    mkdir -p "$out"
else
    out=$(mktemp -d)
    trap 'rm -rf "$out"' EXIT
fi
root=$out/root
rm -rf "$root"
mkdir -p "$root/bin" "$root/proc" "$root/dev" "$root/sys" "$root/run" "$root/tmp" "$root/guest"
cp "$busybox" "$root/bin/busybox"

# A boot CD: the kernel, and a first program that mounts the disk and runs /guest/run there.
# clearcpuid=580 is FSRM: Bochs says that it has that but no ERMS, and with the first alone the
# kernel's memmove takes a path that needs the second.
boot_cd() {
    first=$out/first
    rm -rf "$first" "$out/cd"
    mkdir -p "$first/bin" "$first/dev" "$first/proc" "$first/modules" "$first/disk" "$out/cd"
    cp "$busybox" "$first/bin/busybox"
    modules="scsi_common scsi_mod libata ata_piix sd_mod"
    for m in $modules; do
        find "$KERNEL/lib/modules" -name "$m.ko" -exec cp {} "$first/modules/" \;
    done
    cat >"$first/init" <<END
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
exec >/dev/console 2>&1
/bin/busybox mount -t proc proc /proc
for m in $modules; do /bin/busybox insmod /modules/\$m.ko; done
n=0
while [ ! -e /dev/sda ] && [ \$n -lt 100 ]; do /bin/busybox usleep 100000; n=\$((n + 1)); done
/bin/busybox mount -t ext4 -o noatime /dev/sda /disk
/bin/busybox mount -t proc proc /disk/proc
/bin/busybox mount -t sysfs sys /disk/sys
/bin/busybox mount -t devtmpfs dev /disk/dev
/bin/busybox mkdir -p /disk/dev/shm
/bin/busybox mount -t tmpfs shm /disk/dev/shm
/bin/busybox mount -t tmpfs run /disk/run
/bin/busybox chroot /disk /bin/busybox sh /guest/run
echo "guest: exit \$?"
/bin/busybox sleep 1
/bin/busybox poweroff -f
END
    chmod +x "$first/init"
    (cd "$first" && find . | cpio -o -H newc --quiet) | gzip -1 >"$out/cd/first"
    cp "$KERNEL"/boot/vmlinuz* "$out/cd/kernel"
    cp "$isolinux" "$ldlinux" "$out/cd/"
    cat >"$out/cd/isolinux.cfg" <<END
default anetorch
label anetorch
kernel /kernel
append initrd=/first console=ttyS0 ${QUIET-quiet} panic=-1 reboot=t nokaslr mitigations=off tsc=reliable no_timer_check lpj=1000000 random.trust_cpu=on audit=0 clearcpuid=580
END
    xorriso -as mkisofs -quiet -o "$out/boot.iso" -b isolinux.bin -c boot.cat \
        -no-emul-boot -boot-load-size 4 -boot-info-table "$out/cd" 2>/dev/null
}

# run MODEL: boots, shows the serial line from the first program on, and takes its exit code.
run() {
    truncate -s "${DISK:-64M}" "$out/disk.img"
    mkfs.ext4 -q -F -O ^has_journal -d "$root" "$out/disk.img"
    # AMX: Linux wants XFD with it. Five levels of pages: Bochs loses them on leaving SMM.
    without=$WITHOUT
    case $1 in sapphire_rapids) without="$without amx amx_int8 amx_bf16 la57" ;; esac
    cat >"$out/bochsrc" <<END
display_library: nogui
romimage: file=$bios
vgaromimage: file=$vgabios
memory: guest=2048, host=2048
cpu: model=$1, count=1, ips=200000000, reset_on_triple_fault=0, exclude_features="$without"
clock: sync=none, time0=local
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=disk, path=$out/disk.img, mode=flat
ata0-slave: type=cdrom, path=$out/boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$out/serial.txt
log: $out/bochs.txt
panic: action=fatal
error: action=ignore
END
    rm -f "$out/disk.img.lock"
    : >"$out/serial.txt"
    "$bochs" -q -f "$out/bochsrc" </dev/null >"$out/screen.txt" 2>&1 || true
    tr -d '\r' <"$out/serial.txt" | sed -n '/reboot: Power down/!p'
    tr -d '\r' <"$out/serial.txt" | grep -q '^guest: exit 0$'
}

# The kernels and their driver, each file with its own instruction set, in one static program.
build_driver() {
    built=
    for isa in AVX2 AVX512 AVX512VNNI AVX512BF16 AVX512FP16; do
        built="$built -DANE_BUILT_$isa=1"
    done
    avx2="-mavx2 -mfma -mf16c"
    avx512="$avx2 -mavx512f -mavx512bw -mavx512dq -mavx512vl"
    mkdir -p "$out/objects"
    for src in csrc/base/*.c csrc/kernels/*.c tests/kernels_driver.c; do
        case $src in
        *_neon*.c) continue ;;
        *_avx512vnni.c) isa="$avx512 -mavx512vnni" ;;
        *_avx512bf16.c) isa="$avx512 -mavx512bf16" ;;
        *_avx512fp16.c) isa="$avx512 -mavx512fp16" ;;
        *_avx512.c) isa=$avx512 ;;
        *_avx2.c) isa="$avx2 -mno-avx512f" ;;
        *) isa= ;;
        esac
        echo "$isa -c $src -o $out/objects/$(basename "$src" .c).o"
    done | xargs -P "$(nproc)" -I{} sh -c "$cc -std=c11 -O2 -g1 -D_GNU_SOURCE \
        -ffp-contract=off -Wall -Wextra $built {}"
    # shellcheck disable=SC2086
    $cc -std=c11 -O2 -D_GNU_SOURCE -ffp-contract=off -Wall -Wextra -static $avx512 \
        -mavx512vnni -mavx512bf16 -mavx512fp16 tests/emulate_check.c -o "$root/guest/check" -lm
    $cc -static "$out"/objects/*.o -o "$root/guest/driver" -lpthread -lm 2>"$out/link.txt" ||
        { cat "$out/link.txt" >&2; exit 1; }
}

# Python, the packages the tests need and this tree, at the paths they have here.
copy_python() {
    "$python" - "$root" <<'END'
import importlib, os, pathlib, re, shutil, subprocess, sys, sysconfig

root = pathlib.Path(sys.argv[1])
skip = shutil.ignore_patterns("test", "tests", "__pycache__", "site-packages", "idlelib",
                              "tkinter", "ensurepip", "lib2to3", "config-3*", "*.a")
def copy(path, ignore=skip):
    path = pathlib.Path(os.path.abspath(path))
    to = root / path.relative_to("/")
    to.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, to, ignore=ignore, dirs_exist_ok=True)
    elif not to.exists():
        shutil.copy(path, to)
    return to

exe = os.path.realpath(sys.executable)
whole = shutil.ignore_patterns("__pycache__", "tests")
there = [copy(exe), copy(sysconfig.get_path("stdlib"))]
packages = set()
for name in ("numpy", "pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments"):
    try:
        at = pathlib.Path(importlib.import_module(name).__file__)
    except ImportError:
        continue
    at = at.parent if at.name == "__init__.py" else at
    packages.add(str(at.parent))
    there.append(copy(at, whole))
    libs = at.parent / (name + ".libs")
    if libs.is_dir():
        there.append(copy(libs, whole))
for name in ("anetorch", "tests", "benchmarks", "pyproject.toml", "docs", "README.md"):
    to = root / "guest/tree" / name
    if os.path.isdir(name):
        shutil.copytree(name, to, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, to)
needed = set()
for top in there + [root / "guest/tree/anetorch"]:
    for f in [top] if top.is_file() else top.rglob("*.so*"):
        if f.is_file():
            text = subprocess.run(["ldd", "/" + str(f.relative_to(root))
                                   if root / "guest" not in f.parents else str(f)],
                                  capture_output=True, text=True).stdout
            needed |= set(re.findall(r"(/\S+) \(0x", text))
for f in needed:
    if not f.startswith(str(root)):
        copy(f)
(root / "guest/env").write_text(
    f"export PYTHONHOME={sys.base_prefix}\n"
    f"export PYTHONPATH=/guest/tree:{':'.join(sorted(packages))}\n"
    f"python() {{ {exe} \"$@\"; }}\n")
END
}

# Commands for the guest; NumPy's side of every comparison stays on instructions that we do
# not test.
script() {
    cat >"$root/guest/run" <<END
export PATH=/bin HOME=/run TMPDIR=/run LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
export ANETORCH_NUM_THREADS=${CORES:-2} OPENBLAS_CORETYPE=Haswell OPENBLAS_NUM_THREADS=1
export NPY_DISABLE_CPU_FEATURES="AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR"
$GUEST_ENV
/bin/busybox --install -s /bin
ulimit -c 0
cd /guest
$1
END
}

boot_cd
status=0
case $mode in
driver)
    build_driver
    script "./check && ./driver $TABLES"
    [ $# -gt 0 ] || set -- corei7_skylake_x corei7_icelake_u sapphire_rapids
    for model; do
        echo "== $model"
        run "$model" || { echo "run_bochs.sh: failed on $model" >&2; status=1; }
    done
    ;;
pytest | shell)
    DISK=${DISK:-1500M}
    model=${1:?a model of processor}
    shift
    copy_python
    command=$*
    if [ "$mode" = pytest ]; then
        command="python -m pytest -q --color=no -p no:cacheprovider"
        for argument; do command="$command '$argument'"; done
    fi
    script ". ./env; cd tree; $command"
    run "$model" || status=1
    ;;
*)  echo "run_bochs.sh: unknown mode '$mode'" >&2; exit 2 ;;
esac
exit $status
