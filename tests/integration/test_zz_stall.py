import sys, os, signal, time, threading
sys.path.insert(0,'/work/main')
import pytest
from tests.integration.test_points import syncs, nodes, processes, bitmaps, BackupRequest, backup, Engine, Ties
from tests.integration.test_points import Running, block_jobs, until
from workers import jobs, exports, isolation
from tests.integration.conftest import *

def timed(guest, cmd, limit=6, **a):
    res=[]
    def f():
        t=time.monotonic()
        try: r=guest.qmp(cmd,**a)
        except Exception as e: r=str(e)[:100]
        res.append((round(time.monotonic()-t,3), r if cmd!="query-block-jobs" else [(j["device"][-3:],j["status"],j["offset"],j.get("error")) for j in r]))
    t=threading.Thread(target=f,daemon=True); t.start(); t.join(limit)
    return res[0] if res else f"HUNG > {limit}s"

VDA = DiskSpec("vda", "qcow2", 64 * MIB); VDB=DiskSpec("vdb", "qcow2", 64 * MIB)

@pytest.mark.parametrize("disks",[1,2])
@pytest.mark.parametrize("yank",[0,1,2])
@pytest.mark.parametrize("which",["t","s"])
def test_stall(boot, engine, disks, yank, which):
    guest = boot(*([VDA,VDB][:disks]))
    for t in guest.disks: guest.qemu_io(t,"write -P 1 0 32M")
    guest.resume()
    engine=with_settings(engine, stall_seconds=300, cbw_timeout=1)
    r=Running(engine,guest); r._thread.daemon=True
    r.__enter__()
    pid=r.export_pid("vda",which)
    os.kill(pid, signal.SIGSTOP)
    print(f"\n== disks={disks} yank={yank} which={which}")
    print("write", guest.qemu_io("vda","write -P 2 20M 1M"))
    print("write", guest.qemu_io("vda","write -P 2 22M 1M"))
    for t in guest.disks: guest.qmp("block-job-set-speed", device=f"virtvault-{r.tag}-{t}", speed=0)
    time.sleep(1)
    r.stopping.set(); print(repr(r.raised()))
    if yank==1:
        print("yank", timed(guest,"yank",instances=[{"type":"block-node","node-name":f"vv{which}-{r.tag}-vda"}]))
        time.sleep(.3)
    if yank==2:
        os.kill(pid, signal.SIGKILL); time.sleep(.3)
    print(timed(guest,"query-block-jobs"))
    for t in guest.disks:
        print("cancel",t,timed(guest,"block-job-cancel",device=f"virtvault-{r.tag}-{t}",force=True))
    print(timed(guest,"query-block-jobs"))
    if which=="s":
        print("snapshot del", timed(guest,"blockdev-del",**{"node-name":f"vva-{r.tag}-vda"}))
        for t in guest.disks:
            j=f"virtvault-{r.tag}-{t}"; print("dismiss",timed(guest,"job-dismiss",id=j))
        print("snapshot del", timed(guest,"blockdev-del",**{"node-name":f"vva-{r.tag}-vda"}))
        nd=[b["inserted"]["node-name"] for b in guest.qmp("query-block")]
        print(nd)
        below=[n for n in nodes(guest) if n.startswith("libvirt") and n.endswith("format")]
        d=guest._monitor.qdev("vda")
        f=[n["node-name"] for n in guest.qmp("query-named-block-nodes",flat=True) if n["drv"]=="qcow2" and n["file"]==str(guest.image("vda"))][0]
        print("put back", timed(guest,"qom-set",path=d,property="drive",value=f))
    os.kill(pid, signal.SIGKILL) if yank!=2 else 0
    until(lambda: processes(f"{engine.settings.runtime_dir}/{r.tag}/vda.{which}")==[] , "x")
    from workers.backup import backup
    time.sleep(1)
    engine.journal.wishes(r.task_id).touch()
    try: backup(Engine.of(engine.settings), BackupRequest(domain=guest.name), Ties(r.task_id))
    except BaseException as e: print(repr(e)[:100])
