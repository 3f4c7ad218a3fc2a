"""Sweeps: what was submitted, how far each job is, and one table of what came out.

`python run.py -m ... launcher=slurm` (the Hydra plugin in `hydra_plugins/`) plans a sweep, writes its folder and
submits its jobs; `python -m sweetspot.sweep status|collect|resubmit|cancel DIR` goes on from the folder alone. The
folder is the contract between the two (`folder` reads and writes it):

    runs/NAME/                a sweep: NAME is its axes and a hash of what is the same for all jobs
        jobs.json             what was asked for and submitted (`Sweep`); replaced whole, never half written
        forecast.json         what the jobs that were submitted last were to take, by stage
        code.diff             what the code differed by from its commit, where it did
        logs/                 what the jobs printed, one file an attempt, and the launcher's own files
        JOB/                  one job, named by its point ("n_samples=5,strategy=max_min"): the run's folder
            status.json       written by the job as it goes (`Status`)
            manifest.json     of run.py: there once the run has ended, well or at an error
            error.txt         of run.py: the traceback of the last attempt, where that ended at an error
            .hydra/ jobs/     what every run leaves: configuration, workers' events and logs, report.html
        pool-0/ pool-1/       the same for jobs that fill the shared pool (part "pool")

A job is `python run.py OVERRIDES launcher=local hydra.mode=RUN hydra.run.dir=JOB`, nothing more: it can be started
again by hand.
"running" in status.json is the job's own word, which a killed job cannot take back: it is held against SLURM
(`slurm.states`) or the process table. `submit.submit(sweep, numbers)` submits jobs of a written sweep, for the first
time or again, and adds an attempt to each.
"""
