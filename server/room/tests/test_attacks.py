"""Attacks of a student with a shell on other students, the instructor and the hub, and the protection against them."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import time
from collections.abc import Iterator

import pytest
from machines import PIPES, Machine
from playwright.sync_api import expect
from rooms import ADDRESS, LAB_SECONDS, PEOPLE, SCRIPTS, SUPERVISOR, Room
from workplace import wait_for

pytestmark = pytest.mark.privileged
ADA, BOOLE = PEOPLE[:2]
HUB = "http://10.77.0.2:8081/hub/health"
# Like `python -m http.server`, but without its DNS query.
SERVER = (
    "python3 -c 'import sys; from http.server import *; from socketserver import *; "
    'TCPServer(("", int(sys.argv[1])), SimpleHTTPRequestHandler).serve_forever()\' {port} >/dev/null 2>&1 &'
)
FAILED = {7, 28, 56}  # curl: refused, no answer, reset


@pytest.fixture(scope="module")
def attacked(room) -> Room:
    """The room with two people and cron, in which one of them and root have a job every minute."""
    for name in (ADA, BOOLE):
        room.server.run(f"{SCRIPTS}/person.sh enter {name}")
    room.server.run("ln -sfn /run /var/run; install -d -m 1730 -g crontab /var/spool/cron/crontabs")
    assert code(room.types(ADA, f"echo '* * * * * touch /home/{ADA}/by-cron' | crontab -")) == 0
    room.server.run(
        "rm -f /etc/cron.d/workshop-room"
    )  # cron would start the room now, as after a restart of the machine
    room.server.run("echo '* * * * * root touch /root/by-cron' >/etc/cron.d/control; cron")
    return room


def outside(room: Room, name: str, script: str) -> subprocess.CompletedProcess:
    """Run a script as a person in the machine's own network, where people should have no processes."""
    number = room.server.run(f"id -u {name}").strip()
    become = ["setpriv", "--reuid", number, "--regid", number, "--init-groups", "sh", "-c", script]
    return subprocess.run(room.server.command(*become), **PIPES, check=False)


def code(done: subprocess.CompletedProcess) -> int:
    """Return the exit code of a command."""
    return done.returncode


@contextlib.contextmanager
def serving(machine: Machine, port: int) -> Iterator[None]:
    """Run a web server on all addresses of a machine."""
    machine.run(SERVER.format(port=port))
    wait_for(
        lambda: "200" in machine.run(f"curl -so /dev/null -w '%{{http_code}}' http://127.0.0.1:{port} || true"), 20
    )
    try:
        yield
    finally:
        machine.run(f"pkill --full '[S]impleHTTP.* {port}'")


def test_temporary_folders_are_private(attacked):
    """A person's files in /tmp, /var/tmp and /dev/shm are invisible to other people and the room's programs."""
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        assert code(attacked.types(ADA, f"mkdir -p {folder}/dask-scratch-space; touch {folder}/planted")) == 0
        assert "planted" in attacked.types(ADA, f"ls {folder}").stdout or folder == "/dev/shm"
        assert attacked.types(BOOLE, f"ls {folder}").stdout == ""
        assert "planted" not in attacked.server.run(f"ls {folder}")


def test_clone_is_made_without_the_persons_git_configuration(attacked):
    """A hook of the person's own git configuration does not run during the clone."""
    hook = "mkdir -p t/hooks; echo 'touch ~/hooked' >t/hooks/post-checkout; chmod +x t/hooks/post-checkout"
    attacked.types(ADA, f"cd; {hook}; git config --global init.templateDir ~/t; mv workshop workshop.old")
    assert attacked.server.run(f"{SCRIPTS}/person.sh enter {ADA}").startswith("10.77.")
    assert attacked.types(ADA, "ls ~").stdout.split() == ["t", "workshop", "workshop.old"]
    attacked.types(ADA, "cd; rm -rf t workshop.old .gitconfig")


@pytest.mark.parametrize(
    "trouble",
    [
        "mv workshop workshop.old",
        "rm -rf workshop/.git/objects/*; mkdir workshop.new",
        "rm -rf workshop; ln -s gone workshop",
    ],
)
def test_log_in_repairs_the_folder(attacked, trouble):
    """A renamed, incomplete or missing clone is created again, and the old folder is kept under another name."""
    assert code(attacked.types(BOOLE, f"cd; {trouble}")) == 0
    attacked.server.run(f"{SCRIPTS}/person.sh enter {BOOLE}")
    assert (
        attacked.types(BOOLE, "git status --short && git log -1 --format=%s && ls .venv/bin/workshop").returncode == 0
    )
    assert attacked.types(BOOLE, "git status --short").stdout == ""  # the link to the environment among them
    attacked.types(BOOLE, "cd; rm -rf workshop.*")


def test_one_log_in_waits_for_no_other(attacked):
    """While one person's log-in hangs, here because of a pipe in the clone, another person can log in."""
    assert code(attacked.types(ADA, "mv .git/HEAD .git/kept; mkfifo .git/HEAD")) == 0
    attacked.server.run(f"{SCRIPTS}/person.sh enter {ADA} >/dev/null 2>&1 &")
    wait_for(lambda: attacked.server.run(f"pgrep --uid {ADA} --full [c]at-file || true"), 20)
    attacked.server.run(f"timeout 30 {SCRIPTS}/person.sh enter {BOOLE}")
    assert attacked.server.run(f"pgrep --uid {ADA} --full [c]at-file")
    attacked.server.run(f"pkill --uid {ADA} git; mv /home/{ADA}/workshop/.git/kept /home/{ADA}/workshop/.git/HEAD")


def test_people_cannot_change_locks_and_addresses(attacked):
    """Only root can open a lock, and a person's program cannot write into the address that a log-in prints."""
    # While the log-in waits for the pipe, the program takes its stdout by pidfd_getfd, and then lets it continue.
    evil = """import ctypes, os, subprocess
while not (pid := subprocess.run("pgrep --uid $(id -u) --exact timeout", shell=True, capture_output=True).stdout):
    pass
os.write(ctypes.CDLL(None).syscall(438, os.pidfd_open(int(pid)), 1, 0), b"evil")"""
    evil = f"echo '{evil}' >~/evil.py; (python3 ~/evil.py; sleep 1; pkill git) >~/evil.log 2>&1 &"
    attacked.types(BOOLE, f"mv .git/HEAD .git/kept; mkfifo .git/HEAD; {evil}")
    locks = "/run/workshop-room/*.lock"
    enter = f"rm -f {locks}; umask 022; {SCRIPTS}/person.sh enter {BOOLE} 2>/dev/null; stat --format %a {locks}"
    address, *modes = attacked.server.run(enter).split()
    assert address.startswith("10.77.")
    assert set(modes) == {"600"}
    assert attacked.types(BOOLE, "cat ~/evil.log").stdout == ""
    attacked.types(BOOLE, "rm -rf ~/workshop.before* ~/evil.*")


def test_ports_of_the_hub_cannot_be_taken(attacked):
    """A person who listens on all ports of the hub receives no requests when the room restarts."""
    takes = "for port in 8081 8001 8082 8000; do " + SERVER.format(port="$port") + " done"
    attacked.types(ADA, f"{takes}; exit")
    outside(attacked, ADA, takes)
    attacked.server.run(f"{SCRIPTS}/room.sh restart")
    hub = attacked.server.run(f"{SUPERVISOR} pid hub").strip()
    listening = "ss --no-header --listening --tcp --numeric --processes"
    assert f"pid={hub}," in attacked.server.run(f"ip netns exec room-hub {listening} 'sport = :8081'")
    attacked.server.run(f"pkill --uid {ADA} --full SimpleHTTP")


def test_process_outside_of_its_network_reaches_nothing(attacked):
    """A person's program outside the person's network, as if started by cron, can neither connect nor serve."""
    with serving(attacked.laptop, 9001):
        assert attacked.server.run("curl --silent --max-time 3 http://10.98.1.2:9001")
        for address in ("http://10.98.1.2:9001", f"{ADDRESS}/hub/login", "https://127.0.0.1:8443", HUB):
            assert code(outside(attacked, ADA, f"curl --insecure --silent --max-time 3 {address}")) in FAILED
    outside(attacked, ADA, SERVER.format(port=9002))
    for machine, address in ((attacked.laptop, "10.98.1.1"), (attacked.server, "127.0.0.1")):
        assert "000" in machine.run(f"curl --silent --max-time 3 -w '%{{http_code}}' http://{address}:9002 || true")
    attacked.server.run(f"pkill --uid {ADA} --full SimpleHTTP")


def test_people_reach_the_hub_and_the_world_only(attacked):
    """People cannot reach the machine's other ports, private networks or a cloud's metadata; `--reach` opens one."""
    get = "curl --silent --output /dev/null --max-time 3"
    tries = functools.partial(attacked.types, ADA)
    attacked.server.run("for address in 169.254.169.254 203.0.113.7; do ip address replace $address/32 dev lo; done")
    private = ("100.64.0.7", "169.254.0.7", "172.16.0.7", "192.168.0.7", "198.18.0.7")
    for address in ("198.51.100.7", *private):  # the first one is on the internet
        attacked.laptop.run(f"ip address replace {address}/32 dev lo")
        attacked.server.run(f"ip route replace {address} via 10.98.1.2")
    with serving(attacked.server, 9003), serving(attacked.laptop, 9004):
        assert code(tries(f"{get} http://198.51.100.7:9004")) == code(tries(f"{get} {HUB}")) == 0
        hosts = ("10.77.0.1:9003", "203.0.113.7:9003", "169.254.169.254:9003", "10.98.1.1:9003", "10.98.1.2:9004")
        assert "200" in attacked.server.run(f"curl --silent --head http://{private[0]}:9004")
        for address in (*hosts, *(f"{each}:9004" for each in private)):
            assert code(tries(f"{get} http://{address}")) in FAILED, address
        for port in (8001, 8082, 8000):
            assert code(tries(f"{get} http://10.77.0.2:{port}")) in FAILED
        assert code(tries("curl --silent --unix-socket /run/workshop-room/page/proxy.sock http://x")) == 7
        attacked.set_up("--people /root/names.txt --memory 1G --reach 10.98.1.0/24")
        assert code(tries(f"{get} http://10.98.1.2:9004")) == 0
    attacked.set_up("--people /root/names.txt --memory 1G")


def test_only_the_page_is_reached_from_outside(attacked):
    """A laptop with a route into the room's network reaches neither hub nor JupyterLab."""
    number = int(attacked.server.run(f"id -u {ADA}"))
    attacked.types(ADA, SERVER.format(port=8888))
    # From an internet address: answers to private networks are rejected by another rule.
    attacked.laptop.run("ip route add 10.77.0.0/16 via 10.98.1.1; ip address replace 198.51.100.7/32 dev lo")
    attacked.server.run("ip route replace 198.51.100.7 via 10.98.1.2")
    for address in ("10.77.0.2:8081", "10.77.0.1:8001", f"10.77.{number // 256}.{number % 256}:8888"):
        curl = f"curl --interface 198.51.100.7 --silent --max-time 3 -w '%{{http_code}}' http://{address}"
        assert "000" in attacked.laptop.run(f"{curl} || true")
    assert "login" in attacked.laptop.run(f"curl --insecure --silent --location {ADDRESS}/hub/login")
    attacked.laptop.run("ip route delete 10.77.0.0/16")


def test_one_laptop_cannot_take_all_connections_of_the_page(attacked):
    """Of 8,300 connections of one byte a thousand are accepted, and a log-in from another address is not slower."""
    flood = """import resource, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (9000, 9000))
kept = []
for _ in range(8300):
    try:
        kept.append(socket.create_connection(("10.98.1.1", 8443), timeout=1))
        kept[-1].send(b"x")
    except OSError:
        pass
print(len(kept), flush=True)
input()"""
    attacked.laptop.run("ip address replace 10.98.1.9/24 dev eth0")
    command = attacked.laptop.command("python3", "-c", flood)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as flooding:
        assert 500 < int(flooding.stdout.readline()) < 2100  # the page may have closed some
        began = time.monotonic()
        assert attacked.log_in(BOOLE, source="10.98.1.9").status_code == 302
        assert time.monotonic() - began < 10
        flooding.communicate("\n")


def test_limits_of_processes_and_memory_hold(attacked):
    """A fork bomb ends with its server while others can work; shared memory is limited."""
    assert "No space" in attacked.types(ADA, "dd if=/dev/zero of=/dev/shm/x bs=1M count=400 2>&1").stdout
    attacked.set_up("--people /root/names.txt --memory 1G --processes 300")
    bomb = "while True:\n  try: os.fork()\n  except OSError: time.sleep(0.1)"
    attacked.types(ADA, f"printf 'import os, time\n{bomb}' >~/bomb.py; python3 ~/bomb.py >/dev/null 2>&1 &")
    wait_for(lambda: int(attacked.server.run(f"ps --no-headers -U {ADA} | wc -l")) > 250, 60)
    time.sleep(3)
    assert int(attacked.server.run(f"ps --no-headers -LU {ADA} | wc -l")) <= 300
    assert code(attacked.types(BOOLE, "true")) == 0
    attacked.server.run(f"{SCRIPTS}/person.sh leave {ADA}")
    assert attacked.server.run(f"pgrep --uid {ADA} || true") == ""
    attacked.set_up("--people /root/names.txt --memory 1G")


def test_one_person_cannot_take_all_terminals_or_flows(attacked):
    """One person gets only a part of the machine's 4096 terminals and of the kernel's connection table."""
    take = 'import os, time\nwhile True:\n  try: os.open("/dev/ptmx", 2)\n  except OSError: time.sleep(1)'
    attacked.types(ADA, "cat >~/take.py; python3 ~/take.py >/dev/null 2>&1 &", input=take)
    send = "import socket\none = socket.socket(type=socket.SOCK_DGRAM)\nfor n in range(20000):\n"
    send += "  try: one.sendto(b'x', ('198.51.100.7', 10000 + n))\n  except OSError: pass"
    attacked.types(ADA, "python3 -", input=send)
    assert code(attacked.types(BOOLE, "script --quiet --command true /dev/null")) == 0
    assert attacked.server.run("python3 -c 'import os; os.openpty()'") == ""
    assert 1000 < int(attacked.server.run("cat /proc/sys/net/netfilter/nf_conntrack_count")) < 4000
    attacked.server.run(f"pkill --uid {ADA} --full take.py")


def test_size_counts_what_is_deleted_and_refuses_what_is_sent(attacked):
    """A deleted file that only a thread has open counts; one in transit through a socket is an error."""
    hide = """import ctypes, os, socket, sys, threading, time
def keep():
    ctypes.CDLL(None).unshare(0x400)  # CLONE_FILES: the process itself does not have what is opened now
    kept = os.open("hidden", os.O_CREAT | os.O_RDWR); os.unlink("hidden"); os.write(kept, bytes(30 << 20))
    pair = socket.socketpair()
    if sys.argv[1:]: socket.send_fds(pair[0], [b"x"], [kept])
    open("ready", "w"); time.sleep(100)
threading.Thread(target=keep).start()"""
    for words in ("", "sent"):
        attacked.types(ADA, f"cat >~/hide.py; rm -f ready; python3 ~/hide.py {words} >/dev/null 2>&1 &", input=hide)
        wait_for(attacked.server.path(f"/home/{ADA}/workshop/ready").exists, 20)
        size = f"{SCRIPTS}/person.sh size {ADA}"
        if words:
            assert "send each other" in attacked.server.run(f"! {size} 2>&1")
        else:
            *_, deleted_MB, deleted = map(int, attacked.server.run(size).split())
            assert deleted_MB >= 30
            assert deleted >= 1
        attacked.server.run(f"pkill --uid {ADA} --full hide.py")
    attacked.types(ADA, "rm -f ready ~/hide.py")


def test_limits_hold_for_all_processes_together_where_cgroups_are_of_version_2(attacked):
    """A person's cgroup has both limits and contains each program; here files simulate the kernel's."""
    folder = "/sys/fs/cgroup"
    attacked.server.run(f"mount -t tmpfs tmpfs {folder}; echo cpu memory pids >{folder}/cgroup.controllers")
    inside = attacked.types(ADA, "ulimit -d; echo $$").stdout.split()
    values = "; ".join(
        f"cat {folder}/workshop-room/{ADA}/{name}" for name in ("memory.max", "pids.max", "cgroup.procs")
    )
    assert attacked.server.run(values).split() == [
        str(2**30),
        "1000",
        inside[1],
    ]  # the script becomes the person's shell
    assert inside[0] == "unlimited"
    attacked.server.run(f"umount {folder}")


def test_root_of_a_namespace_of_her_own_gains_nothing(attacked):
    """In her own namespace a person can set no address or rule, and reach nothing; `leave` ends the processes."""
    number = attacked.server.run(f"id -u {ADA}").strip()
    attacked.types(ADA, "setsid sleep 300 >/dev/null 2>&1 &")
    wait_for(lambda: attacked.server.run(f"pgrep --uid {ADA} sleep || true"), 20)
    # The tests' machine is in a chroot, in which the kernel allows no user namespaces.
    become = f"setpriv --reuid {number} --regid {number} --clear-groups unshare --user --map-root-user"
    inside = f"nsenter --target=$(pgrep --uid {ADA} sleep) --mount --net --ipc {become}"
    attacked.server.run(f"{inside} true")
    for script in (
        "ip address add 10.77.99.9/16 dev eth0",
        "ip link set eth0 address 02:00:00:00:00:01",
        "nft list ruleset",
    ):
        assert "not permitted" in attacked.server.run(f"{inside} {script} 2>&1 || true")
    assert "000" in attacked.server.run(f"{inside} --net curl --silent --write-out '%{{http_code}}' {HUB} || true")
    attacked.server.run(f"{inside} --net setsid sleep 301 >/dev/null 2>&1 &")
    wait_for(lambda: attacked.server.run(f"pgrep --uid {ADA} --full 's[l]eep 301' || true"), 20)
    attacked.server.run(f"{SCRIPTS}/person.sh leave {ADA}")
    assert attacked.server.run(f"pgrep --uid {ADA} || true") == ""


def test_leave_ends_what_hides_and_defends_itself(attacked):
    """A program in its own session that ignores signals and stops other processes ends with the server."""
    stop = "import os\nwhile True:\n  try: os.kill(-1, 19)\n  except OSError: pass"
    attacked.types(ADA, f"printf '{stop}' >~/stop.py; trap '' TERM; setsid python3 ~/stop.py >/dev/null 2>&1 &")
    wait_for(lambda: attacked.server.run(f"pgrep --uid {ADA} python || true"), 20)
    attacked.server.run(f"timeout 60 {SCRIPTS}/person.sh leave {ADA}")
    assert attacked.server.run(f"pgrep --uid {ADA} || true") == ""
    attacked.server.run(f"{SCRIPTS}/person.sh enter {ADA}")


def test_one_person_cannot_take_all_connections_of_the_hub(attacked):
    """The hub accepts 64 of a person's hundred connections, and still answers others."""
    lines = (
        "import socket",
        "sockets = [socket.socket() for _ in range(100)]",
        'print(sum(each.connect_ex(("10.77.0.2", 8081)) == 0 for each in sockets))',
    )
    done = attacked.types(ADA, "python3 -", input="\n".join(lines))
    assert int(done.stdout) == 64, done.stderr
    assert code(attacked.types(BOOLE, f"curl --silent --max-time 5 {HUB}")) == 0


def test_removed_person_is_logged_out_and_loses_nothing(attacked):
    """Session, server and programs end, and the password is rejected; added again, the person finds the files."""
    with attacked.page(BOOLE) as page:
        expect(page.get_by_role("heading", name="From a messy notebook")).to_be_visible(timeout=LAB_SECONDS * 1000)
        attacked.server.path("/root/fewer.txt").write_text("\n".join(name for name in PEOPLE if name != BOOLE))
        assert f"No longer in the list: {BOOLE}." in attacked.set_up("--people /root/fewer.txt --memory 1G")
        assert attacked.server.run(f"pgrep --uid {BOOLE} || true") == ""
        page.goto(f"{ADDRESS}/hub/home")
        page.fill("#username_input", BOOLE)
        page.fill("#password_input", attacked.passwords[BOOLE])
        page.click("#login_submit")
        expect(page.get_by_text("Invalid username or password")).to_be_visible(timeout=30_000)
    attacked.set_up("--people /root/names.txt --memory 1G")
    assert "START.md" in attacked.server.run(f"ls /home/{BOOLE}/workshop")
    attacked.server.run(f"{SCRIPTS}/room.sh password {BOOLE}")
    lines = attacked.server.path("/etc/workshop-room/passwords.txt").read_text().splitlines()
    new = dict(line.split() for line in lines)
    assert new[BOOLE] != attacked.passwords[BOOLE]
    assert len(new) == len(PEOPLE) + 1  # with the instructor
    attacked.passwords |= new


def test_invalid_options_of_setup_are_explained(attacked):
    """A name of a system account, a file system without quotas and invalid options are errors; nothing is changed."""
    attacked.server.run("useradd --uid 1234 gauss; echo gauss >/root/gauss.txt")
    for options, words in {
        "--people /root/gauss.txt": "gauss is an account of this machine (user id 1234)",
        "--people /root/names.txt --disk 5G": "has no quotas",
        "--people /root/names.txt --reach everything": "--reach everything",
        "--people /root/names.txt --open": "--people and --open",
    }.items():
        with pytest.raises(AssertionError, match="Not set up") as error:
            attacked.set_up(options)
        assert words in str(error.value)
    attacked.server.run("userdel gauss")


def test_installation_is_roots_alone(attacked):
    """People cannot write files that others run; only root can read secrets and passwords."""
    assert attacked.types(ADA, "find /opt/workshop -writable ! -type l | head").stdout == ""
    for place in (
        "/opt/workshop/.venv/.lock",
        "/etc/workshop-room/passwords.txt",
        "/run/workshop-room/jupyterhub.sqlite",
        "/var/lib/workshop-room",
    ):
        assert (
            "ermission denied" in attacked.types(ADA, f"ls {place}").stderr + attacked.types(ADA, f"cat {place}").stderr
        )
    assert attacked.server.run("stat --format %a /home/curie").strip() == "700"  # who has never logged in


def test_cron_at_ssh_and_su_are_closed_to_people(attacked):
    """PAM rejects people in su, sshd and each job of cron and at, but accepts root."""
    assert "su: " in attacked.server.run(f"su - {ADA} -c true 2>&1 || true")
    attacked.server.run("ssh-keygen -qt ed25519 -N '' -f /root/key; mkdir -p /run/sshd; /usr/sbin/sshd -p 2222")
    for home, owner in (("/root", "root"), (f"/home/{ADA}", ADA)):
        attacked.server.run(
            f"install -D -m 600 -o {owner} /root/key.pub {home}/.ssh/authorized_keys; chown {owner} {home}/.ssh"
        )
    key = attacked.server.run("cat /root/key")
    ssh = "ssh -p 2222 -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -i /root/key"
    attacked.laptop.run(f"umask 077; echo '{key}' >/root/key")
    assert "in\n" in attacked.laptop.run(f"{ssh} root@10.98.1.1 echo in 2>&1")
    assert "in\n" not in attacked.laptop.run(f"{ssh} {ADA}@10.98.1.1 echo in 2>&1 || true")
    attacked.server.run("install -d -m 1770 -o daemon -g daemon /var/spool/cron/atjobs /var/spool/cron/atspool; atd")
    attacked.server.run("echo 0 >/var/spool/cron/atjobs/.SEQ; chown daemon:daemon /var/spool/cron/atjobs/.SEQ")
    attacked.types(ADA, "echo 'touch ~/by-at' | at now")
    attacked.server.run("echo 'touch /root/by-at' | at now")
    for job in ("by-at", "by-cron"):
        wait_for(attacked.server.path(f"/root/{job}").exists, 100)
        assert not attacked.server.path(f"/home/{ADA}/{job}").exists()
    attacked.server.run(f"pkill --exact 'cron|atd|sshd'; rm /etc/cron.d/control /root/by-*; crontab -u {ADA} -r")
