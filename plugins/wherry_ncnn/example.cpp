// Runs the bundle's network with ncnn's C++ API, and compares the first sample's outputs.
//
//   g++ -std=c++17 -O2 -fopenmp example.cpp -o example -I NCNN/include/ncnn -L NCNN/lib -lncnn
//   ./example FOLDER_OF_THE_BUNDLE
//
// NCNN is the folder in which ncnn is installed (its releases, or cmake --install).

#include <net.h>

#include "model.h"

// A blob over the sample's bytes: ncnn's axes are in the other order, and the batch is left out.
static ncnn::Mat blob(const model::Tensor &tensor, std::vector<char> &bytes) {
  std::vector<int> side(tensor.shape.begin(), tensor.shape.end());
  if (side.size() == 1) return ncnn::Mat(side[0], bytes.data()).clone();
  if (side.size() == 2) return ncnn::Mat(side[1], side[0], bytes.data()).clone();
  if (side.size() == 3) side.insert(side.begin() + 1, 1);  // channels, depth, height, width
  if (side.size() == 4) {
    ncnn::Mat copy = tensor.shape.size() == 3 ? ncnn::Mat(side[3], side[2], side[0])
                                              : ncnn::Mat(side[3], side[2], side[1], side[0]);
    const std::size_t each = sizeof(float) * side[1] * side[2] * side[3];
    for (int c = 0; c < side[0]; c++)  // channels begin on aligned addresses
      std::memcpy(copy.channel(c), bytes.data() + c * each, each);
    return copy;
  }
  throw std::runtime_error("ncnn has tensors of 1 to 4 axes");
}

static std::vector<float> flat(const ncnn::Mat &mat) {
  std::vector<float> values;
  const std::size_t each = std::size_t(mat.w) * mat.h * mat.d;
  for (int c = 0; c < mat.c; c++) {
    const float *begin = mat.channel(c);
    values.insert(values.end(), begin, begin + each);
  }
  return values;
}

int main(int argc, char **argv) try {
  const std::string folder = argc > 1 ? argv[1] : "..";
  const bool half = std::string(model::precision) == "fp16";
  ncnn::Net net;
  net.opt.num_threads = model::threads;
  net.opt.use_fp16_packed = half;
  net.opt.use_fp16_storage = half;
  net.opt.use_fp16_arithmetic = half && model::option("fp16_arithmetic") == "true";
  net.opt.use_int8_inference = std::string(model::precision) == "int8";
  if (net.load_param((folder + "/artifact/model.param").c_str()) ||
      net.load_model((folder + "/artifact/model.bin").c_str()))
    throw std::runtime_error("ncnn does not load the network");
  ncnn::Extractor extractor = net.create_extractor();
  for (const model::Tensor &input : model::inputs) {
    std::vector<char> bytes = model::sample(folder, input);
    if (extractor.input(input.name, blob(input, bytes)))
      throw std::runtime_error(std::string("ncnn takes no input ") + input.name);
  }
  bool same = true;
  for (const model::Tensor &output : model::outputs) {
    ncnn::Mat mat;
    if (extractor.extract(output.name, mat))
      throw std::runtime_error(std::string("ncnn gives no output ") + output.name);
    const std::vector<float> values = flat(mat);
    same = model::check(folder, output, values.data(), values.size() * sizeof(float)) && same;
  }
  return same ? 0 : 1;
} catch (const std::exception &error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 2;
}
