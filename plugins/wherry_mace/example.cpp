// Runs the bundle's network with MACE's C++ API, and compares the first sample's outputs.
//
//   g++ -std=c++17 -O2 example.cpp -o example -I MACE/include -L LIB -lmace
//   LD_LIBRARY_PATH=LIB ./example FOLDER_OF_THE_BUNDLE
//
// MACE is a checkout of MACE 1.1 or newer; LIB the folder of libmace.so, as its build makes it for your
// board. For a network that was made for the GPU add -DMACE_ENABLE_OPENCL: that libmace has to have it.

#include <mace/public/mace.h>

#include <map>
#include <memory>

#include "model.h"

static void check(const mace::MaceStatus &status, const char *what) {
  if (status != mace::MaceStatus::MACE_SUCCESS)
    throw std::runtime_error(std::string("MACE did not ") + what + ": " + status.information());
}

// Pictures are in ONNX's order, as they were measured; MACE turns them where it wants to.
static mace::MaceTensor tensor_of(const model::Tensor &tensor, const std::vector<char> &bytes) {
  const std::shared_ptr<char> data(new char[bytes.size()], std::default_delete<char[]>());
  std::memcpy(data.get(), bytes.data(), bytes.size());
  const auto order = tensor.shape.size() == 4 ? mace::DataFormat::NCHW : mace::DataFormat::NONE;
  return mace::MaceTensor(tensor.shape, data, order, mace::IDataType::IDT_FLOAT);
}

static std::size_t size_of(const model::Tensor &tensor) {
  std::size_t size = sizeof(float);
  for (const int64_t side : tensor.shape) size *= std::size_t(side);
  return size;
}

static void configure(mace::MaceEngineConfig &config) {
  const std::string affinity = model::option("affinity");
  check(config.SetCPUThreadPolicy(model::threads, affinity == "big"      ? mace::AFFINITY_BIG_ONLY
                                                  : affinity == "little" ? mace::AFFINITY_LITTLE_ONLY
                                                                         : mace::AFFINITY_NONE),
        "take its threads");
  if (model::option("runtime") != "gpu") return;  // the model's file says it, too
#ifdef MACE_ENABLE_OPENCL
  check(config.SetGPUContext(mace::GPUContextBuilder().Finalize()), "take the GPU");
  check(config.SetGPUHints(mace::PERF_HIGH, mace::PRIORITY_HIGH), "take its hints");
#else
  throw std::runtime_error("this network is for the GPU: compile with -DMACE_ENABLE_OPENCL");
#endif
}

static bool run(const std::string &folder) {
  mace::MaceEngineConfig config;
  configure(config);
  std::vector<std::string> input_names, output_names;
  std::map<std::string, mace::MaceTensor> inputs, outputs;
  for (const model::Tensor &input : model::inputs) {
    const std::vector<char> bytes = model::sample(folder, input);
    if (bytes.size() != size_of(input)) throw std::runtime_error("a sample of another shape");
    input_names.push_back(input.name);
    inputs[input.name] = tensor_of(input, bytes);
  }
  for (const model::Tensor &output : model::outputs) {
    output_names.push_back(output.name);
    outputs[output.name] = tensor_of(output, std::vector<char>(size_of(output)));
  }
  // the engine points into the weights, and is destroyed before them
  const std::vector<char> graph = model::read(folder + "/artifact/model.pb");
  const std::vector<char> weights = model::read(folder + "/artifact/model.data");
  std::shared_ptr<mace::MaceEngine> engine;
  check(mace::CreateMaceEngineFromProto(
            reinterpret_cast<const unsigned char *>(graph.data()), graph.size(),
            reinterpret_cast<const unsigned char *>(weights.data()), weights.size(), input_names,
            output_names, config, &engine),
        "load the network");
  check(engine->Run(inputs, &outputs), "run the network");
  bool same = true;
  for (const model::Tensor &output : model::outputs) {
    const std::shared_ptr<char> data = outputs[output.name].data<char>();
    same = model::check(folder, output, data.get(), size_of(output)) && same;
  }
  return same;
}

int main(int argc, char **argv) {
  try {
    return run(argc > 1 ? argv[1] : "..") ? 0 : 1;
  } catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
