from collections.abc import Iterator

import pytest
from pool import Pool


def pytest_itemcollected(item: pytest.Item) -> None:
    """One worker runs all of this folder, so that its ranks are started once."""
    item.add_marker(pytest.mark.xdist_group("ranks"))


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Four ranks on gloo."""
    pool = Pool(4, tmp_path_factory.mktemp("ranks"))
    yield pool
    pool.close()
