"""The arithmetic of placement, without a cluster."""

import pytest

from ring_ray.actors.placement import Bundle, PlacementError, check, plan
from ring_ray.config import ClusterConfig, RoleResources


def cluster(*, colocate: bool = True, **roles: RoleResources) -> ClusterConfig:
    return ClusterConfig(colocate=colocate, **roles)


def test_policy_rollout_and_reference_share_a_bundle_each() -> None:
    asked = plan(
        cluster(
            policy=RoleResources(workers=2, cpus=1, gpus=0.5),
            rollout=RoleResources(workers=3, cpus=2, gpus=0.25),
            reference=RoleResources(cpus=0.5, gpus=0.125),
            reward=RoleResources(workers=4, cpus=0.5),
            buffer=RoleResources(cpus=0.25),
        ),
        ["reference"],
    )
    assert asked.bundles == (Bundle(3.5, 1), Bundle(3, 1), Bundle(2, 1), Bundle(2.25, 0))
    assert asked.places == {
        "policy": (0, 1),
        "rollout": (0, 1, 2),
        "reference": (0,),
        "buffer": (3,),
        "reward": (3, 3, 3, 3),
    }


def test_apart_each_worker_has_a_bundle() -> None:
    asked = plan(
        ClusterConfig(
            colocate=False,
            policy=RoleResources(workers=2, cpus=1, gpus=1),
            rollout=RoleResources(workers=1, cpus=2, gpus=4),
            reference=RoleResources(cpus=0.5, gpus=1),
            buffer=RoleResources(cpus=0.25),
        ),
        ["reference"],
    )
    assert asked.bundles == (Bundle(1, 1), Bundle(1, 1), Bundle(2, 4), Bundle(0.5, 1), Bundle(0.5, 0))
    assert asked.places == {"policy": (0, 1), "rollout": (2,), "reference": (3,), "buffer": (4,), "reward": (4,)}


def test_a_reward_model_is_placed_as_the_reference_is() -> None:
    share = RoleResources(cpus=0.5, gpus=0.25)
    together = plan(cluster(policy=share, rollout=share, reward_model=share), ["reward_model"])
    assert together.bundles[0] == Bundle(1.5, 1)
    assert together.places["reward_model"] == (0,)
    whole = RoleResources(cpus=0.5, gpus=1)
    apart = plan(cluster(colocate=False, policy=whole, rollout=whole, reward_model=whole), ["reward_model"])
    assert apart.places["reward_model"] == (2,)
    assert apart.bundles[2] == Bundle(0.5, 1)


def test_no_room_is_kept_for_a_reference_that_is_not_spawned() -> None:
    asked = plan(cluster(reference=RoleResources(cpus=100)), ())
    check(asked, [{"CPU": 2.0}])


def test_fractions_that_add_up_exactly_fit() -> None:
    resources = RoleResources(cpus=0.1)
    asked = plan(
        cluster(policy=resources, rollout=RoleResources(cpus=0.2), reward=resources, buffer=resources),
        (),
    )
    check(asked, [{"CPU": 0.3}, {"CPU": 0.2}])


def test_a_bundle_does_not_fit_across_two_nodes() -> None:
    asked = plan(cluster(policy=RoleResources(cpus=3)), ())
    with pytest.raises(PlacementError):
        check(asked, [{"CPU": 2.0}, {"CPU": 2.0}])


def test_the_error_shows_asked_and_available() -> None:
    on_gpu = cluster(policy=RoleResources(cpus=8, gpus=0.5), rollout=RoleResources(cpus=0.5, gpus=0.5))
    asked = plan(on_gpu, ())
    with pytest.raises(PlacementError) as refused:
        check(asked, [{"CPU": 4.0}])
    lines = [line.split() for line in str(refused.value).splitlines()]
    assert ["CPU", "9", "4"] in lines
    assert ["GPU", "1", "0"] in lines
    assert ["cluster.policy", "1", "x", "8", "CPU,", "0.5", "GPU"] in lines
