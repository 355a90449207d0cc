"""What the test programs need from the package registries, installed once into a cache directory by the ordinary clients."""
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
CACHE = pathlib.Path(os.environ.get('OTTLA_TEST_CACHE', REPOSITORY / 'target/test-cache')).resolve()


def python(*packages):
    """The interpreter of a virtual environment that holds exactly these packages."""
    tag = hashlib.sha256(' '.join(packages).encode()).hexdigest()[:10]
    home = CACHE / f'venv-{tag}'
    interpreter, done = home / 'bin/python', home / 'complete'
    if not done.exists():
        shutil.rmtree(home, ignore_errors=True)
        home.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, '-m', 'venv', home], check=True)
        subprocess.run([interpreter, '-m', 'pip', 'install', '-q', *packages], check=True)
        done.touch()
    return interpreter


def debian(command, *packages):
    """Makes sure of a command (none: of the packages), by Debian's packages where it is missing."""
    if command and shutil.which(command):
        return
    subprocess.run(['apt-get', 'update', '-qq'], check=True)
    subprocess.run(['apt-get', 'install', '-y', '-qq', *packages], check=True, stdout=subprocess.DEVNULL,
                   env={**os.environ, 'DEBIAN_FRONTEND': 'noninteractive'})


def kafka_class_path(pom=REPOSITORY / 'tests/clients/java/pom.xml'):
    """The class path of a pom.xml (by default the Java client, the command line tools and the server), resolved by Maven."""
    tag = hashlib.sha256(pom.read_bytes()).hexdigest()[:10]
    file = CACHE / f'class-path-{tag}.txt'
    if not file.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix('.part')
        subprocess.run(['mvn', '-q', '-B', '-f', pom, 'dependency:build-classpath', f'-Dmdep.outputFile={part}'], check=True)
        part.rename(file)
    return file.read_text().strip()
