from prefix_rl.costs import Cost, inference_flops, update_flops


def test_operations_in_numbers():
    assert inference_flops(parameters=7, tokens=100) == 1400  # 2 * 7 * 100
    assert update_flops(parameters=7, tokens=100) == 4200  # 6 * 7 * 100


def test_costs_add_up_field_by_field():
    one = Cost(generated_tokens=1.0, injected_tokens=20.0, trained_tokens=300.0, flops=4000.0)
    two = Cost(generated_tokens=5.0, injected_tokens=60.0, trained_tokens=700.0, flops=8000.0)
    total = Cost(generated_tokens=6.0, injected_tokens=80.0, trained_tokens=1000.0, flops=12000.0)
    assert one + two == two + one == total
    assert one + Cost() == one
    assert sum([one, two], Cost()) == total
