"""What a student with a shell tries against another student, the instructor and the hub, and what holds it."""

from __future__ import annotations

import functools
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from machines import PIPES, Machine
from rooms import ADDRESS, LAB_SECONDS, PEOPLE, SCRIPTS, SUPERVISOR, Room
from workplace import wait_for

pytestmark = pytest.mark.privileged
ADA, BOOLE = PEOPLE[:2]
HUB = "http://10.77.0.2:8081/hub/health"
FAILED = {7, 28, 56}  # curl: refused, no answer, reset


@pytest.fixture(scope="module")
def attacked(room) -> Room:
    """The room with two people in it."""
    for name in (ADA, BOOLE):
        room.server.run(f"{SCRIPTS}/person.sh enter {name}")
    return room


def outside(room: Room, name: str, script: str) -> subprocess.CompletedProcess:
    """Run a script as a person in the machine's own network, where nothing of theirs should be."""
    number = room.server.run(f"id -u {name}").strip()
    become = ["setpriv", "--reuid", number, "--regid", number, "--init-groups", "sh", "-c", script]
    return subprocess.run(room.server.command(*become), **PIPES, check=False)


def code(done: subprocess.CompletedProcess) -> int:
    """Return how a command ended."""
    return done.returncode


def serve(machine: Machine, address: str, port: int) -> subprocess.Popen:
    """Start a web server on a machine; it ends with it."""
    command = machine.command("python3", "-m", "http.server", port, "--bind", address)
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_temporary_folders_are_private(attacked):
    """What one person plants in /tmp, /var/tmp and /dev/shm no other person, and no program of the room, sees."""
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        assert code(attacked.types(ADA, f"mkdir -p {folder}/dask-scratch-space; touch {folder}/planted")) == 0
        assert "planted" in attacked.types(ADA, f"ls {folder}").stdout or folder == "/dev/shm"
        assert attacked.types(BOOLE, f"ls {folder}").stdout == ""
        assert "planted" not in attacked.server.run(f"ls {folder}")


def test_clone_runs_in_the_persons_network_and_without_their_git(attacked):
    """A hook of the person's own git configuration does not run when the folder is made, nor is the hub's network near."""
    hook = "mkdir -p t/hooks; echo 'touch ~/hooked' >t/hooks/post-checkout; chmod +x t/hooks/post-checkout"
    attacked.types(ADA, f"cd; {hook}; git config --global init.templateDir ~/t; mv workshop workshop.old")
    assert attacked.server.run(f"{SCRIPTS}/person.sh enter {ADA}").startswith("10.77.")
    assert attacked.types(ADA, "ls ~").stdout.split() == ["t", "workshop", "workshop.old"]
    attacked.types(ADA, "cd; rm -rf t workshop.old .gitconfig")


@pytest.mark.parametrize(
    "trouble",
    ["mv workshop workshop.old", "rm -rf workshop/.git; mkdir workshop.new", "rm -rf workshop; ln -s gone workshop"],
)
def test_log_in_repairs_the_folder(attacked, trouble):
    """A renamed, half-made or missing clone is made again, and what was there is kept under another name."""
    assert code(attacked.types(BOOLE, f"cd; {trouble}")) == 0
    attacked.server.run(f"{SCRIPTS}/person.sh enter {BOOLE}")
    assert attacked.types(BOOLE, "git status --short; git log -1 --format=%s; ls .venv/bin/workshop").returncode == 0
    assert attacked.types(BOOLE, "git status --short").stdout == ""  # the link to the environment among them
    attacked.types(BOOLE, "cd; rm -rf workshop.*")


def test_one_log_in_waits_for_no_other(attacked):
    """While the folder of one person is being made, which a full pipe holds up, another person comes in."""
    attacked.types(ADA, "rm -rf ~/workshop ~/workshop.new; mkfifo ~/.mlflow-hold; rm -rf ~/.mlflow")
    slow = subprocess.Popen(
        attacked.server.command(
            "flock", f"/run/workshop-room/{attacked.server.run(f'id -u {ADA}').strip()}.lock", "sleep", "60"
        )
    )
    began = time.monotonic()
    attacked.server.run(f"{SCRIPTS}/person.sh enter {BOOLE}")
    assert time.monotonic() - began < 30
    slow.kill()
    slow.wait()
    attacked.server.run(f"pkill -f '[s]leep 60' || true; rm /home/{ADA}/.mlflow-hold; {SCRIPTS}/person.sh enter {ADA}")


def test_ports_of_the_hub_cannot_be_taken(attacked):
    """Somebody who listens on all ports of the hub, wherever a person can, is not asked when the room starts again."""
    takes = "for port in 8081 8001 8082 8000; do python3 -m http.server $port >/dev/null 2>&1 & done"
    attacked.types(ADA, f"{takes}; exit")
    outside(attacked, ADA, takes)
    attacked.server.run(f"{SCRIPTS}/room.sh restart")
    hub = attacked.server.run(f"{SUPERVISOR} pid hub").strip()
    listening = "ss --no-header --listening --tcp --numeric --processes"
    assert f"pid={hub}," in attacked.server.run(f"ip netns exec room-hub {listening} 'sport = :8081'")
    attacked.server.run(f"pkill --uid {ADA} --full http.server")


def test_process_outside_of_its_network_reaches_nothing(attacked):
    """Started by cron, say, a program of a person reaches no server on this machine or elsewhere, and serves nobody."""
    serve(attacked.laptop, "10.98.1.2", 9001)
    wait_for(
        lambda: "200" in attacked.server.run("curl -so /dev/null -w '%{http_code}' http://10.98.1.2:9001 || true"), 20
    )
    for address in ("http://10.98.1.2:9001", f"{ADDRESS}/hub/login", "https://127.0.0.1:8443", HUB):
        assert code(outside(attacked, ADA, f"curl --insecure --silent --max-time 3 {address}")) in FAILED
    outside(attacked, ADA, "python3 -m http.server 9002 >/dev/null 2>&1 &")
    with pytest.raises(AssertionError):
        attacked.laptop.run("curl --silent --max-time 3 http://10.98.1.1:9002")
    attacked.server.run(f"pkill --uid {ADA} --full http.server")


def test_cron_at_ssh_and_su_are_closed_to_people(attacked):
    """PAM refuses a person whatever is not the room; cron asks it for each job, sshd and su for each log-in."""
    cron = attacked.server.command("cron", "-f")
    daemon = subprocess.Popen(cron, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    attacked.types(ADA, "echo '* * * * * touch /home/ada/by-cron' | crontab -")
    assert attacked.server.run("echo '* * * * * root touch /root/by-cron' >/etc/cron.d/control") == ""
    assert "ermission denied" in attacked.server.run(f"su - {ADA} -c true 2>&1 || true")
    with ThreadPoolExecutor(1):
        wait_for(lambda: attacked.server.path("/root/by-cron").exists(), 100)
    assert not attacked.server.path("/home/ada/by-cron").exists()
    attacked.types(ADA, "crontab -r")
    daemon.kill()
    daemon.wait()
    attacked.server.run("rm /etc/cron.d/control /root/by-cron")


def test_people_reach_the_hub_and_the_world_only(attacked):
    """Not the machine's other ports, the network beside it or a cloud's metadata; `--reach` opens one network."""
    serve(attacked.server, "0.0.0.0", 9003)  # a service of the machine
    attacked.server.run("ip address add 169.254.169.254/32 dev lo; ip address add 203.0.113.7/32 dev lo")
    attacked.laptop.run("ip address add 198.51.100.7/32 dev lo")  # somewhere in the world
    serve(attacked.laptop, "0.0.0.0", 9004)
    attacked.server.run("ip route add 198.51.100.7 via 10.98.1.2")
    tries = functools.partial(attacked.types, ADA)
    get = "curl --silent --output /dev/null --max-time 3"
    wait_for(lambda: code(tries(f"{get} http://198.51.100.7:9004")) == 0, 20)
    assert code(tries(f"{get} {HUB}")) == 0
    for address in ("10.77.0.1:9003", "203.0.113.7:9003", "169.254.169.254:9003", "10.98.1.1:9003", "10.98.1.2:9004"):
        assert code(tries(f"{get} http://{address}")) in FAILED, address
    for port in (8001, 8082, 8000):
        assert code(tries(f"{get} http://10.77.0.2:{port}")) in FAILED
    assert code(tries("curl --silent --max-time 3 --unix-socket /run/workshop-room/page/proxy.sock http://x")) == 7
    attacked.set_up("--people /root/names.txt --memory 1G --reach 10.98.1.0/24")
    assert code(tries(f"{get} http://10.98.1.2:9004")) == 0
    attacked.set_up("--people /root/names.txt --memory 1G")
    attacked.server.run("pkill -f '[h]ttp.server 9003'")
    attacked.laptop.run("pkill -f '[h]ttp.server'")


def test_only_the_page_is_reached_from_outside(attacked):
    """A laptop with a route into the room's network reaches neither hub nor JupyterLab."""
    number = int(attacked.server.run(f"id -u {ADA}"))
    attacked.types(ADA, "python3 -m http.server 8888 >/dev/null 2>&1 &")
    attacked.laptop.run("ip route add 10.77.0.0/16 via 10.98.1.1")
    for address in ("10.77.0.2:8081", "10.77.0.1:8001", f"10.77.{number // 256}.{number % 256}:8888"):
        with pytest.raises(AssertionError):
            attacked.laptop.run(f"curl --silent --max-time 3 http://{address}")
    assert "login" in attacked.laptop.run(f"curl --insecure --silent --location {ADDRESS}/hub/login")
    attacked.laptop.run("ip route delete 10.77.0.0/16")


def test_wrong_passwords_are_limited_by_address(attacked):
    """Sixty guesses at once: at most thirty-one reach the hub, and a log-in from elsewhere takes no longer."""
    guess = (
        f"curl --insecure --silent --output /dev/null -w '%{{http_code}}\\n' --data username={ADA} --data password=x"
    )
    codes = attacked.laptop.run(f"for n in $(seq 60); do {guess} {ADDRESS}/hub/login & done; wait").split()
    assert codes.count("429") >= 25
    began = time.monotonic()
    attacked.server.run(f"{guess} https://127.0.0.1:8443/hub/login")
    assert time.monotonic() - began < 5
    time.sleep(30)  # the address may log in again


def test_limits_of_processes_and_memory_hold(attacked):
    """A fork bomb ends with its server, while others work; shared memory has an end."""
    assert "No space" in attacked.types(ADA, "dd if=/dev/zero of=/dev/shm/x bs=1M count=400 2>&1").stdout
    attacked.set_up("--people /root/names.txt --memory 1G --processes 300")
    bomb = attacked.server.command(f"{SCRIPTS}/person.sh", "run", ADA, "sh", "-c", "f() { f | f & }; f; sleep 30")
    running = subprocess.Popen(bomb, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: int(attacked.server.run(f"ps --no-headers -U {ADA} | wc -l")) > 200, 60)
    assert code(attacked.types(BOOLE, "true")) == 0
    attacked.server.run(f"{SCRIPTS}/person.sh leave {ADA}")
    assert attacked.server.run(f"pgrep --uid {ADA} || true") == ""
    running.wait(timeout=60)
    attacked.set_up("--people /root/names.txt --memory 1G")


def test_leave_ends_what_hides(attacked):
    """A program in nested namespaces, in a session of its own and with signals ignored ends with the person's server."""
    hides = "setsid unshare --user --map-root-user --net --pid --fork sh -c 'trap : TERM HUP; sleep 1000; sleep 1000'"
    attacked.types(ADA, f"{hides} >/dev/null 2>&1 &")
    wait_for(lambda: attacked.server.run(f"pgrep --uid {ADA} sleep || true"), 20)
    attacked.server.run(f"{SCRIPTS}/person.sh leave {ADA}")
    assert attacked.server.run(f"pgrep --uid {ADA} || true") == ""
    attacked.server.run(f"{SCRIPTS}/person.sh enter {ADA}")


def test_name_taken_out_of_the_list_is_gone_and_keeps_its_work(attacked):
    """Programs end, the log-in is refused and the files stay; back in the list, the same password counts."""
    attacked.types(BOOLE, "echo mine >~/mine; sleep 1000 >/dev/null 2>&1 &")
    names = "\n".join(name for name in PEOPLE if name != BOOLE)
    attacked.server.path("/root/fewer.txt").write_text(names)
    assert f"No longer in the list: {BOOLE}." in attacked.set_up("--people /root/fewer.txt --memory 1G")
    assert attacked.server.run(f"pgrep --uid {BOOLE} || true") == ""
    with attacked.page(BOOLE) as page:
        assert "Invalid username or password" in page.content()
    attacked.set_up("--people /root/names.txt --memory 1G")
    assert attacked.server.run(f"cat /home/{BOOLE}/mine") == "mine\n"
    attacked.server.run(f"{SCRIPTS}/room.sh password {BOOLE}")
    new = dict(
        line.split() for line in attacked.server.path("/etc/workshop-room/passwords.txt").read_text().splitlines()
    )
    assert new[BOOLE] != attacked.passwords[BOOLE] and len(new) == len(PEOPLE) + 1
    attacked.passwords |= new


def test_failures_end_the_set_up_in_words(attacked):
    """A name of the machine's own, a missing file system quota, a port out of range: nothing is changed."""
    attacked.server.run("useradd --create-home --uid 1234 gauss; echo gauss >/root/gauss.txt")
    for options, words in {
        "--people /root/gauss.txt": "gauss is an account of this machine (number 1234)",
        "--people /root/names.txt --disk 5G": "has no quotas",
        "--people /root/names.txt --reach everything": "--reach everything",
        "--people /root/names.txt --open": "--people and --open",
    }.items():
        with pytest.raises(AssertionError, match="Not set up") as error:
            attacked.set_up(options)
        assert words in str(error.value)
    attacked.server.run("userdel --remove gauss 2>/dev/null")


def test_full_disk_stops_one_person_and_no_other(attacked):
    """One fills the disk: the reserve is given up, the instructor and others log in; then the full one is ended."""
    attacked.types(ADA, "dd if=/dev/zero of=~/full bs=1M 2>/dev/null; true")
    reserve = attacked.server.path("/home/.workshop-room-reserve")
    wait_for(lambda: not reserve.exists(), 60)
    attacked.open_lab("instructor")
    attacked.open_lab(PEOPLE[3])
    with attacked.page("instructor") as page:
        wait_for(lambda: page.goto(f"{ADDRESS}/services/board/") and ADA in page.content(), LAB_SECONDS)
    attacked.server.run(f"{SCRIPTS}/person.sh leave {ADA}; rm /home/{ADA}/full")
    wait_for(reserve.exists, 60)


def test_installation_is_roots_alone(attacked):
    """No person can write what others run; secrets and the passwords are root's; no password was in a command line."""
    assert attacked.types(ADA, "find /opt/workshop -writable ! -type l | head").stdout == ""
    for place in ("/etc/workshop-room/passwords.txt", "/run/workshop-room/jupyterhub.sqlite", "/var/lib/workshop-room"):
        assert (
            "ermission denied" in attacked.types(ADA, f"ls {place}").stderr + attacked.types(ADA, f"cat {place}").stderr
        )
    assert attacked.server.run("stat --format %a /home/curie").strip() == "700"  # who has never logged in
