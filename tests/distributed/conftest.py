from collections.abc import Iterator

import pytest
from pool import Pool


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Four ranks on gloo."""
    pool = Pool(4, tmp_path_factory.mktemp("ranks"))
    yield pool
    pool.close()
