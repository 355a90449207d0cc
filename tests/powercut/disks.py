"""Disks of device.py as mounted file systems, for whoever tests on them. Needs root, loop devices and FUSE."""
import json
import os
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent


def missing():
    """Why there can be no such disks here, or None."""
    if os.geteuid() != 0:
        return 'it needs root'
    for path in ('/dev/fuse', '/dev/loop-control'):
        if not os.access(path, os.R_OK | os.W_OK):
            return f'there is no {path}'
    programs = [name for name in ('losetup', 'mkfs.ext4', 'mount') if not shutil.which(name)]
    return f'there is no {programs[0]}' if programs else None


class Devices:
    """The process of device.py, and the loop devices over its files."""

    def __init__(self, home):
        self.home, self.loops = home, {}
        self.process = subprocess.Popen([sys.executable, HERE / 'device.py', home], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, command):
        self.process.stdin.write(json.dumps(command) + '\n')
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError('device.py has ended')
        return json.loads(line)

    def attach(self, name, file, mount):
        loop = subprocess.run(['losetup', '-f', '--show', file], check=True, capture_output=True, text=True).stdout.strip()
        self.loops[name] = (loop, mount)
        return loop

    def detach(self, name):
        loop, mount = self.loops.pop(name)
        subprocess.run(['umount', mount], check=True)
        subprocess.run(['losetup', '-d', loop], check=True)

    def keep(self, to):
        """Copies what is on the disks: it is gone with the process."""
        for name, (_, mount) in self.loops.items():
            shutil.copytree(mount, to / name)

    def close(self):
        for name, (loop, mount) in list(self.loops.items()):
            subprocess.run(['umount', '-l', mount], check=False)
            subprocess.run(['losetup', '-d', loop], check=False)
        self.process.stdin.close()
        self.process.wait(10)
        subprocess.run(['umount', '-l', self.home / 'disks'], check=False)
