"""Manifests: targets, rows and the options that mean something for them."""

from __future__ import annotations

from manifest_texts import BASE, DATA, refusal, rows

from wherry.keep import Operator


def test_lists_multiply(load_text):
    manifest = load_text(
        BASE
        + "targets: [{backend: [onnxruntime, ncnn], precision: [fp32, fp16], threads: [1, 2],"
        + " ncnn: {winograd: [true, false], cores: [[0], [1, 2]], mode: small}}]"
    )
    found = [
        (
            target.backend,
            target.precision,
            target.options.threads,
            getattr(target.options, "winograd", None),
            getattr(target.options, "cores", None),
        )
        for target in manifest.targets
    ]
    plain = [
        ("onnxruntime", precision, threads, None, None)
        for precision in ("fp32", "fp16")
        for threads in (1, 2)
    ]
    many = [
        ("ncnn", precision, threads, winograd, cores)
        for precision in ("fp32", "fp16")
        for threads in (1, 2)
        for winograd in (True, False)
        for cores in ([0], [1, 2])
    ]
    assert found == plain + many
    assert len({target.id for target in manifest.targets}) == len(found)


def test_an_option_that_takes_a_list_takes_one(load_text):
    manifest = load_text(BASE + "targets: [{backend: ncnn, ncnn: {cores: [0, 1]}}]")
    assert [target.options.cores for target in manifest.targets] == [[0, 1]]


def test_a_backends_block_has_the_last_word_on_threads(load_text):
    manifest = load_text(
        BASE + "targets: [{backend: [onnxruntime, ncnn], threads: 4, ncnn: {threads: [1, 2]}}]"
    )
    assert [target.options.threads for target in manifest.targets] == [4, 1, 2]


def test_exclude_takes_out_before_precisions_are_judged(load_text):
    manifest = load_text(
        BASE
        + "targets: [{backend: [onnxruntime, ncnn], precision: [fp32, bf16, fp16]}]\n"
        + "exclude: [{precision: bf16}, {backend: ncnn, threads: 1, precision: [fp16, bf16]}]\n"
    )
    assert [target.id for target in manifest.targets] == [
        "onnxruntime-fp32-local",
        "onnxruntime-fp16-local",
        "ncnn-fp32-local",
    ]


def test_variants_are_outermost_and_can_be_chosen(load_text):
    manifest = load_text(
        BASE
        + "variants: {original: [], a: [simplify], b: [simplify]}\n"
        + "targets: [{backend: ncnn, variants: [b, original]}, {backend: onnxruntime}]\n"
        + "exclude: [{variant: a, backend: onnxruntime}]\n"
    )
    assert rows(manifest) == [
        ("original", "ncnn-fp32-local"),
        ("original", "onnxruntime-fp32-local"),
        ("b", "ncnn-fp32-local"),
        ("b", "onnxruntime-fp32-local"),
    ]
    assert len(manifest.targets) == 2


def test_one_target_may_serve_variants_of_two_entries(load_text):
    manifest = load_text(
        BASE
        + "variants: {a: [], b: []}\n"
        + "targets: [{backend: ncnn, variants: a}, {backend: ncnn, variants: b}]\n"
    )
    assert rows(manifest) == [("a", "ncnn-fp32-local"), ("b", "ncnn-fp32-local")]
    assert len(manifest.targets) == 1


def test_a_double_names_both_lines(load_text):
    text = refusal(
        load_text,
        BASE + "targets:\n- backend: [ncnn, onnxruntime]\n- {backend: ncnn, threads: 1}\n",
    )
    assert text.startswith("m.yaml:5:3: variant original with ncnn fp32 on local")
    assert "here and at m.yaml:4:3" in text


def test_a_refused_precision_says_why(load_text):
    text = refusal(load_text, BASE + "targets: [{backend: [ncnn, onnxruntime], precision: bf16}]")
    assert "onnxruntime does not offer bf16: it has no bfloat16 kernels on a CPU" in text
    assert "ncnn does not offer bf16. It offers fp32, fp16, int8." in text


def test_lists_that_multiply_beyond_reason_are_refused(load_text):
    numbers = list(range(1, 1001))
    cores = [[number] for number in numbers]
    text = refusal(
        load_text,
        BASE + f"targets: [{{backend: ncnn, threads: {numbers}, ncnn: {{cores: {cores}}}}}]",
    )
    assert "multiply to 1000000 rows" in text
    one = f"{{backend: onnxruntime, threads: {numbers}}}"
    assert "multiply to 1000 rows. A manifest may have 20000 in all" in refusal(
        load_text, BASE + f"targets: [{', '.join([one] * 21)}]"
    )


# Mixed precision


MIXED = BASE + DATA + "targets: [{backend: ncnn, precision: [fp32, int8], keep_fp32: %s%s}]\n"


def kept(manifest):
    return [(target.precision, list(target.options.keep_fp32)) for _, target in manifest.rows]


def test_nodes_that_stay_in_fp32_are_of_the_precisions_that_need_it(load_text):
    manifest = load_text(MIXED % ("[conv1, '/block/*', {op: Softmax}]", ""))
    assert kept(manifest) == [("fp32", []), ("int8", ["conv1", "/block/*", Operator(op="Softmax")])]
    (_, plain), (_, mixed) = manifest.rows
    assert plain.id == "ncnn-fp32-local"
    assert mixed.id.startswith("ncnn-int8-local-")
    assert "keep_fp32=[conv1, and 2 more]" in mixed.describe()


def test_a_backend_has_the_last_word_and_lists_of_lists_multiply(load_text):
    manifest = load_text(MIXED % ("[conv1]", ", ncnn: {keep_fp32: [[], [conv2], [conv2, conv3]]}"))
    assert kept(manifest) == [
        ("fp32", []),
        ("int8", []),
        ("int8", ["conv2"]),
        ("int8", ["conv2", "conv3"]),
    ]


def test_who_cannot_mix_precisions_is_named(load_text):
    text = refusal(load_text, MIXED.replace("fp32, int8", "fp16") % ("[conv1]", ""))
    assert "m.yaml:4:" in text
    assert "ncnn fp16 cannot keep single nodes in fp32" in text
    text = refusal(load_text, MIXED % ("{op: Softmax}", ""))
    assert "keep_fp32" in text
    for wrong in ("[{op: Softmax, of: 3}]", "[{}]", "['']", "[3]"):
        assert "keep_fp32" in refusal(load_text, MIXED % (wrong, "")), wrong


def test_an_option_of_other_precisions_than_the_entry_asks_for_is_refused(load_text):
    only = MIXED.replace("fp32, int8", "fp32")
    text = refusal(load_text, only % ("[conv1]", ""))
    assert "m.yaml:4:" in text and "keep_fp32 means nothing in fp32" in text
    assert "It is for bf16, fp16, int8" in text
    text = refusal(load_text, only % ("[]", ", ncnn: {keep_fp32: [conv1]}"))
    assert "keep_fp32 means nothing in fp32" in text
    assert kept(load_text(only % ("[]", ""))) == [("fp32", [])]
