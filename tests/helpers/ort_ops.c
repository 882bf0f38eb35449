/* A library with one custom operator for ONNX Runtime: test.ops::Twice, which answers with 2 x.
 *
 * ONNX Runtime's headers are not in its wheels. Its C interface is a table of functions that only ever grows at its
 * end, so the places below, counted in the header of version 1.2, hold for every version since.
 */
#include <stddef.h>
#include <stdint.h>

enum {
    CREATE_CUSTOM_OP_DOMAIN = 26,
    CUSTOM_OP_DOMAIN_ADD = 27,
    ADD_CUSTOM_OP_DOMAIN = 28,
    GET_TENSOR_MUTABLE_DATA = 51,
    GET_DIMENSIONS_COUNT = 61,
    GET_DIMENSIONS = 62,
    GET_TENSOR_TYPE_AND_SHAPE = 65,
    KERNEL_CONTEXT_GET_INPUT = 90,
    KERNEL_CONTEXT_GET_OUTPUT = 91,
    RELEASE_TENSOR_TYPE_AND_SHAPE_INFO = 99,
    MOST_AXES = 8,
    FLOAT = 1,
};

typedef void (*function)(void);

typedef struct {
    const function *(*get_api)(uint32_t version);
    const char *(*get_version_string)(void);
} api_base;

typedef struct custom_op {
    uint32_t version;
    void *(*create_kernel)(const struct custom_op *, const function *, const void *);
    const char *(*get_name)(const struct custom_op *);
    const char *(*get_execution_provider_type)(const struct custom_op *);
    int (*get_input_type)(const struct custom_op *, size_t);
    size_t (*get_input_type_count)(const struct custom_op *);
    int (*get_output_type)(const struct custom_op *, size_t);
    size_t (*get_output_type_count)(const struct custom_op *);
    void (*kernel_compute)(void *, void *);
    void (*kernel_destroy)(void *);
    int (*get_input_characteristic)(const struct custom_op *, size_t);
    int (*get_output_characteristic)(const struct custom_op *, size_t);
    function of_later_versions[16];
} custom_op;

static const function *api;

#define CALL(place, ...) ((void *(*)())api[place])(__VA_ARGS__)

static void *create_kernel(const custom_op *op, const function *table, const void *info) {
    (void)op;
    (void)info;
    return (void *)table;
}

static const char *get_name(const custom_op *op) {
    (void)op;
    return "Twice";
}

static const char *on_the_cpu(const custom_op *op) {
    (void)op;
    return NULL;
}

static int get_type(const custom_op *op, size_t index) {
    (void)op;
    (void)index;
    return FLOAT;
}

static size_t one(const custom_op *op) {
    (void)op;
    return 1;
}

static void compute(void *kernel, void *context) {
    void *input, *output, *info;
    float *from, *to;
    size_t axes, elements = 1, i;
    int64_t sizes[MOST_AXES];
    (void)kernel;
    CALL(KERNEL_CONTEXT_GET_INPUT, context, (size_t)0, &input);
    CALL(GET_TENSOR_TYPE_AND_SHAPE, input, &info);
    CALL(GET_DIMENSIONS_COUNT, info, &axes);
    CALL(GET_DIMENSIONS, info, sizes, axes);
    CALL(RELEASE_TENSOR_TYPE_AND_SHAPE_INFO, info);
    CALL(KERNEL_CONTEXT_GET_OUTPUT, context, (size_t)0, sizes, axes, &output);
    CALL(GET_TENSOR_MUTABLE_DATA, input, &from);
    CALL(GET_TENSOR_MUTABLE_DATA, output, &to);
    for (i = 0; i < axes; i++) elements *= (size_t)sizes[i];
    for (i = 0; i < elements; i++) to[i] = 2 * from[i];
}

static int required(const custom_op *op, size_t index) {
    (void)op;
    (void)index;
    return 0;
}

static void destroy(void *kernel) { (void)kernel; }

static const custom_op twice = {
    .version = 8,
    .create_kernel = create_kernel,
    .get_name = get_name,
    .get_execution_provider_type = on_the_cpu,
    .get_input_type = get_type,
    .get_input_type_count = one,
    .get_output_type = get_type,
    .get_output_type_count = one,
    .kernel_compute = compute,
    .kernel_destroy = destroy,
    .get_input_characteristic = required,
    .get_output_characteristic = required,
};

void *RegisterCustomOps(void *options, const api_base *base) {
    void *domain, *problem;
    api = base->get_api(8);
    problem = CALL(CREATE_CUSTOM_OP_DOMAIN, "test.ops", &domain);
    if (!problem) problem = CALL(CUSTOM_OP_DOMAIN_ADD, domain, &twice);
    if (!problem) problem = CALL(ADD_CUSTOM_OP_DOMAIN, options, domain);
    return problem;
}
