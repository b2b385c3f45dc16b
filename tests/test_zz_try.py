def test_it(run): print(sorted(p.name for p in run.path.rglob('*')))
