"""sweetspot: n samples per prompt -> the best preference data -> a policy, and an honest account of which construction
works.

The life of a prompt, one stage a line (`sweetspot.stages`, called by run.py):

    samples = sample(prompts, model, sampler, n_samples, run)         tiles of the shared pool that are missing
    rewards = score(samples, reward_model, run)                       one float a sample
    pairs   = select(rewards, strategy, ignore_duplicates, run)       pure: rewards [prompts, n] -> pairs
    policy  = train(pairs, start, reference, dpo, deepspeed, ...)     a policy is a Model again
    result  = evaluate(name, eval, subject, run)                      sampling again, other prompts, and judging
    report  = report.write(manifest)                                  from the manifest and the store alone

The floors; an import only points down:

    run.py, report, manifest, exchange (python -m sweetspot.store)
    stages
    sampler, reward_model, trainer, logprob, embedded, dpo, sft, eval, data
    tile, fill: what lies in which file, and making what is missing together with others
    component, schema, store, lease, launch, ranks, progress, logger, model
    devices, stopping
    strategy, statistics, distribution, budget, duplicates, losses
    visible
"""
